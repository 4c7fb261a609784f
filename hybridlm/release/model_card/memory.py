"""The memory-suite row: what small models of the checkpoint's mixers did in the memory suite. Not the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hybridlm.errors import UserError
from hybridlm.evaluation.memory.commands import commands
from hybridlm.evaluation.memory.store import Store
from hybridlm.evaluation.memory.summary import Group, summarize
from hybridlm.evaluation.memory.table import overview_table
from hybridlm.files import expanded
from hybridlm.model.configuration_hybridlm import HybridLMConfig
from hybridlm.release.model_card.markdown import block, code


def repeated(layers: Sequence[str]) -> str:
    """The shortest sequence of layers that, repeated, gives `layers`: "rglru bmru" of (rglru bmru)*2."""
    for width in range(1, len(layers) + 1):
        if len(layers) % width == 0 and list(layers) == list(layers[:width]) * (len(layers) // width):
            return " ".join(layers[:width])
    return ""


def mixers_of(layers: Sequence[str]) -> list[str]:
    """Each mixer of a stack once, in their order."""
    return list(dict.fromkeys(name for layer in layers for name in layer.split("+")))


def memory_section(folder: str | Path, layers: Sequence[str]) -> str:
    """Tables and commands, as Markdown; "" where no record is of these mixers. Records of the whole pattern, and of
    each of its mixers alone.

    Raises UserError where `folder` holds no records of the memory suite.
    """
    path = expanded(folder)
    if not path.is_dir():
        raise UserError(f"--memory {folder}: there is no such folder. Give the one of `memory-suite --out`.")
    records = Store(path).records()
    if not records:
        raise UserError(f"--memory {folder}: it holds no record. Give the folder of `memory-suite --out`.")
    wanted = {repeated(layers), *dict.fromkeys(layers), *mixers_of(layers)}
    groups = [group for group in summarize(records) if group.standard and _canonical(group.mixer) in wanted]
    return "\n\n".join(part for form in ("standard", "quick") for part in _form(groups, form))


def _canonical(mixer: str) -> str:
    """The mixer of a record, which may be any pattern, as `repeated` says it."""
    try:
        return repeated(HybridLMConfig(pattern=mixer).block_types)
    except ValueError:  # of a version with other mixers
        return mixer


def _form(groups: Sequence[Group], form: str) -> list[str]:
    inside = [group for group in groups if group.form == form]
    if not inside:
        return []
    seeds = sorted({seed for group in inside for seed in group.seeds})
    over = (
        f"means over seeds {', '.join(map(str, seeds))} (of failing lengths medians)"
        if seeds[1:]
        else f"seed {seeds[0]}"
    )
    mixers = ", ".join(code(name) for name in dict.fromkeys(group.mixer for group in inside))
    table = overview_table(inside, best=False).markdown(legend=False)
    return [
        f"{form.capitalize()} form, {mixers}{_sizes(inside)}; the last and hardest test of each task, {over}:",
        table,
        block(commands(inside)),
    ]


def _sizes(groups: Sequence[Group]) -> str:
    """Parameters of the models, where the records say them."""
    sizes = [record["parameters"] for group in groups for record in group.records if "parameters" in record]
    return f", models of {min(sizes):,} to {max(sizes):,} parameters" if sizes else ""
