"""The data folder of a run that has begun: opened as it is, so that a resumed run reads no source again.

`prepare` looks at every document to find out whether a data folder is what its section describes. For a run that has a
checkpoint that is known already: the checkpoint holds the data's fingerprint, and RUN/config.yaml the section.

The weights of data.prepare are the run's own: the folder keeps those that it has, for runs that only name the folder.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from hybridlm.data.prepare import prepare, source_weights
from hybridlm.data.shards import TokenShards
from hybridlm.errors import OtherSettingsError, UserError
from hybridlm.files import expanded
from hybridlm.training.checkpoints import checkpoints
from hybridlm.training.config import settings
from hybridlm.training.plain_yaml import yaml_value
from hybridlm.training.sections import PretrainConfig
from hybridlm.training.state import read_state

_HOW = ("workers", "overwrite")
"""Entries of data.prepare that say how the folder is made, not what is in it."""


def prepared_folder(config: PretrainConfig, log: Callable[[str], None]) -> Path:
    """The data folder that `config.data.prepare` describes, made where it is missing.

    The folder that a run has begun with is never replaced, whatever data.prepare.overwrite says, as long as the run
    folder holds a checkpoint. Raises UserError.
    """
    section = config.data.prepare
    assert section is not None
    output = expanded(section.output)
    if not run_began_with(config.run.path, output, source_weights(section)):
        return prepare(section, log, set_weights=False)
    if as_begun(config):
        log(f"Data folder {output} is the one that this run began with; its sources are not read again.")
        return output
    try:
        return prepare(replace(section, overwrite=False), log, set_weights=False)
    except OtherSettingsError as error:
        raise OtherSettingsError(
            f"{error.found}The run in {config.run.path} began with it. ",
            "Give the old data.prepare back, or choose another data.prepare.output and another run.name.",
        ) from None


def run_began_with(run: Path, output: Path, given: list[float]) -> bool:
    """Whether the run's newest state was made with what now lies in `output`, under any weights that it may have had:
    those of its last session, those `given` now, the folder's own."""
    before = _weights_before(run)
    for saved in (run / "final", *reversed(checkpoints(run))):
        try:
            fingerprint = read_state(saved).data_fingerprint
        except UserError:  # not there or damaged: it says nothing
            continue
        for weights in (before, given, None):
            with suppress(UserError):  # no folder, or another number of sources
                if TokenShards(output, "train", weights).fingerprint == fingerprint:
                    return True
        return False
    return False


def as_begun(config: PretrainConfig) -> bool:
    """Whether the recipe's section is the one that the run's last session had."""
    return _what(_section_before(config.run.path)) == _what(settings(config)["data"]["prepare"])


def _weights_before(run: Path) -> list[float] | None:
    """Those of the run's last session; None, which stands for the folder's own, where they are not known."""
    try:
        return [float(source.get("weight", 1.0)) for source in _section_before(run)["sources"]]
    except (KeyError, AttributeError, TypeError, ValueError, OverflowError):  # config.yaml is damaged
        return None


def _section_before(run: Path) -> dict[str, Any]:
    """data.prepare of the run's last session; empty where that is not known."""
    try:
        before = yaml_value((run / "config.yaml").read_text(encoding="utf-8"))["data"]["prepare"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return {}
    return before if isinstance(before, dict) else {}


def _what(section: dict[str, Any]) -> dict[str, Any]:
    """What is read, without how, and without what is said of it."""
    what = {name: value for name, value in section.items() if name not in _HOW}
    sources = what.get("sources")
    if isinstance(sources, list) and all(isinstance(source, dict) for source in sources):
        what["sources"] = [{name: source[name] for name in source if name != "license"} for source in sources]
    return what
