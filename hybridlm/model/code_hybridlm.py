"""How this code travels inside a checkpoint, for `trust_remote_code=True` where hybridlm is not installed.

config.json then names the class of each Auto class (`auto_map`), and the files of those classes lie beside it. One rule
keeps the two together: a configuration whose `auto_map` names our classes is saved with all of the code, whoever saves
it, and however often.

The files are part of hybridlm, Copyright 2026 The hybridlm authors, Apache License 2.0
(https://www.apache.org/licenses/LICENSE-2.0). The licence grants no rights to the patent applications of the University
of Liège on the memory recurrent units (`bmru`, `cmru`, `acmru`, `fqbmru`): EP26151077, EP26175243.0, EP26175248.9,
US 63/897,109.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitOperationDelete, ModelCard
from huggingface_hub.errors import RemoteEntryNotFoundError, RevisionNotFoundError
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils.hub import PushToHubMixin, hf_api

if TYPE_CHECKING:
    # Never run, but read: transformers copies a file together with what its text imports. Through this line, and the
    # configuration's import of this file, whichever class is saved takes the others with it.
    from .heads_hybridlm import HybridLMForSequenceClassification  # noqa: F401

AUTO_MAP = {
    "AutoConfig": "configuration_hybridlm.HybridLMConfig",
    "AutoModel": "modeling_hybridlm.HybridLMModel",
    "AutoModelForCausalLM": "modeling_hybridlm.HybridLMForCausalLM",
    "AutoModelForSequenceClassification": "heads_hybridlm.HybridLMForSequenceClassification",
    "AutoModelForTokenClassification": "heads_hybridlm.HybridLMForTokenClassification",
    "AutoModelForQuestionAnswering": "heads_hybridlm.HybridLMForQuestionAnswering",
}
"""Auto class -> file and class, as config.json names them."""

LICENCES = {"LICENSE": "LICENSE-CODE", "NOTICE": "NOTICE-CODE"}
"""Texts beside the code -> their names in a checkpoint, where they must not pass for the licence of the weights."""


def code_files() -> list[Path]:
    """The files that a checkpoint needs, as transformers itself finds them."""
    return sorted({Path(file).resolve() for file in get_relative_import_files(__file__)})


def copy_code(folder: str | os.PathLike) -> None:
    """Writes the code into `folder`, and its licence, where this is the installed package (transformers, which put the
    code elsewhere, does not take it along)."""
    os.makedirs(folder, exist_ok=True)
    for file in code_files():
        shutil.copyfile(file, Path(folder) / file.name)
    for name, copied in LICENCES.items():
        text = Path(__file__).with_name(name)
        if text.is_file():
            shutil.copyfile(text, Path(folder) / copied)


def names_our_classes(auto_map: Mapping[str, Any] | None) -> bool:
    """Whether a configuration with this `auto_map` is saved together with the code."""
    return any(_is_ours(reference) for reference in (auto_map or {}).values())


def with_our_classes(auto_map: Mapping[str, str]) -> dict[str, str]:
    """`auto_map` with an entry for every class of ours, found beside it (not in the repository that it came from);
    entries for the classes of others stay."""
    return AUTO_MAP | {auto: reference for auto, reference in auto_map.items() if not _is_ours(reference)}


def _is_ours(reference) -> bool:
    """Whether it names a class of ours; OWNER/NAME-- in front says in which repository it lies."""
    return str(reference).rpartition("--")[2] in AUTO_MAP.values()


@contextmanager
def _carrying(config) -> Iterator[None]:
    before = getattr(config, "auto_map", None)
    config.auto_map = with_our_classes(before or {})
    try:
        yield
    finally:
        if before is None:
            del config.auto_map
        else:
            config.auto_map = before


class CarriesCode(PushToHubMixin):
    """The part of a model that saves it: uploads to the Hub take the code along, folders where they are asked to."""

    config: Any
    num_parameters: Callable[[], int]

    def carry_code(self, carry: bool = True) -> None:
        """Whether `save_pretrained` puts the code beside the weights, so that the folder loads with torch and
        transformers alone, through `trust_remote_code=True`.

        On in a model that was loaded from such a folder; off otherwise. `push_to_hub` does it always, and so does every
        save where hybridlm is not installed.
        """
        if carry:
            self.config.auto_map = with_our_classes(getattr(self.config, "auto_map", None) or {})
        elif hasattr(self.config, "auto_map"):
            del self.config.auto_map

    def save_pretrained(
        self, save_directory, is_main_process=True, state_dict=None, push_to_hub=False, *args, **kwargs
    ) -> None:
        """As in transformers; with push_to_hub the code is written too."""
        with _carrying(self.config) if push_to_hub else nullcontext():
            super().save_pretrained(save_directory, is_main_process, state_dict, push_to_hub, *args, **kwargs)

    def push_to_hub(self, *args, **kwargs) -> str:
        """As in transformers, and the code goes along: the repository loads with torch and transformers alone. A README
        that somebody wrote there stays; else it is a small card.

        A commit of its own removes what would be taken for this model and is an earlier one's: weights in one file,
        which are read in place of these in several, and results of `hybridlm card --benchmark`. Other files stay:
        `hybridlm push` makes one commit that removes old shards and code too.
        """
        with _carrying(self.config):
            return super().push_to_hub(*args, **kwargs)

    def _upload_modified_files(self, working_dir, repo_id, *args, **kwargs):
        """As in transformers, with a card that says something in place of its form to fill in."""
        from .card_hybridlm import card, sealed_by

        name, token, revision = type(self).__name__, kwargs.get("token"), kwargs.get("revision")
        auto_class = next((auto for auto, ours in AUTO_MAP.items() if ours.endswith(f".{name}")), None)
        there = _readme(repo_id, token, revision)
        file = Path(working_dir) / "README.md"
        if auto_class is not None and (there is None or sealed_by(there) is not None):
            form: Any = ModelCard.load(file, ignore_metadata_errors=True)
            text = card(
                repo_id,
                auto_class=auto_class,
                tags=form.data.tags or (),
                architecture=name,
                pattern=self.config.pattern,
                parameters=self.num_parameters(),
                tokenizer=hf_api().file_exists(repo_id, "tokenizer_config.json", token=token),
            )
            file.write_text(text, encoding="utf-8")
        elif there is not None and revision is not None:
            file.write_bytes(there.encode("utf-8"))  # transformers has that of main
        done = super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)
        _remove_old(Path(working_dir), repo_id, getattr(done, "pr_revision", None) or revision, token)
        return done


_MISLEADING = {"model.safetensors": "model.safetensors.index.json", ".eval_results/hybridlm.yaml": "config.json"}
"""What an earlier upload may have left -> the file that says that it is not this one's."""


def _remove_old(folder: Path, repo_id: str, revision: str | None, token) -> None:
    """Removes from a repository what would be taken for a part of the model that was uploaded from `folder`."""
    api = hf_api()
    old = [
        name
        for name, sign in _MISLEADING.items()
        if (folder / sign).is_file()
        and not (folder / name).is_file()
        and api.file_exists(repo_id, name, revision=revision, token=token)
    ]
    if old:
        operations = [CommitOperationDelete(name, is_folder=False) for name in old]
        message = "Remove what is of the model before"
        api.create_commit(repo_id, operations, commit_message=message, revision=revision, token=token)


def _readme(repo_id: str, token, revision: str | None) -> str | None:
    """The one on the Hub, on a branch that is there; None where there is none."""
    for branch in dict.fromkeys((revision, None)):
        try:
            path = hf_api().hf_hub_download(repo_id, "README.md", revision=branch, token=token)
        except RevisionNotFoundError:  # which will be made from main
            continue
        except RemoteEntryNotFoundError:
            return None
        return Path(path).read_bytes().decode("utf-8", "replace")
    return None
