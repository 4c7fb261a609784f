"""The page of the memory suite: everything between its first and its last line is made from records, except the
findings, a file beside it that people write."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hybridlm.errors import UserError
from hybridlm.evaluation.memory.certificates import certificate_table
from hybridlm.evaluation.memory.commands import commands
from hybridlm.evaluation.memory.families import Family, by_family, mixer_order
from hybridlm.evaluation.memory.pictures import Picture, draw
from hybridlm.evaluation.memory.recipe import RECIPES
from hybridlm.evaluation.memory.summary import Group, summarize
from hybridlm.evaluation.memory.table import (
    BEST,
    DIVERGED,
    change_table,
    failing_table,
    family_tables,
    overview_table,
)
from hybridlm.files import replace_file

ABOUT = """\
Small models of every mixer, each trained on one task, then tested on sequences far longer than those it was
trained on. All share the stack, the recipe and the data of a seed; only the mixer differs.

- **Error rate**: wrong answers as a share of what was asked. **Squared error**: its mean over what was asked; where
  the asked numbers have variance 1, always answering 0 gives 1. Lower is better in both.
- **Failing length**: the length at which more than a tenth of the sequences have had an error; "> 32,768" where there
  was none up to there. Longer is better.
- Numbers are means over seeds, of failing lengths medians (the shorter of the middle two); in brackets the smallest
  and the largest. Bars in the pictures are the same range. "-": not run. "n/a": skipped, with the reason below."""

MARKS = f"""\
- {BEST}
- {DIVERGED}"""


def write_page(
    records: Iterable[dict[str, Any]],
    page: str | Path,
    pictures_folder: str | Path | None,
    certificates: Iterable[dict[str, Any]] = (),
) -> Path:
    """Writes the pictures, then the page, which is whole or not there; returns its path.

    pictures_folder None: a page without pictures, which needs no matplotlib. certificates: of `read_certificates`.
    `PAGE_findings.md` beside the page is taken into it as it stands. Raises UserError where there is no record, or a
    place cannot be written.
    """
    page, groups = Path(page), summarize(records)
    if not groups:
        raise UserError(f"page {page}: there is no record to write it from. Run hybridlm memory-suite first.")
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        pictures = [] if pictures_folder is None else draw(groups, pictures_folder)
        findings = findings_path(page)
        prose = findings.read_text(encoding="utf-8") if findings.exists() else ""
        replace_file(page, render(groups, pictures, page.parent, prose, certificates))
    except OSError as error:
        raise UserError(f"page {page}: cannot be written ({error.strerror}). Give a path that can be.") from None
    return page


def findings_path(page: Path) -> Path:
    return page.with_name(f"{page.stem}_findings.md")


def render(
    groups: Sequence[Group],
    pictures: Sequence[Picture],
    folder: Path,
    findings: str = "",
    certificates: Iterable[dict[str, Any]] = (),
) -> str:
    """The page. folder: where it stands; links to pictures are relative to it."""
    standard = [group for group in groups if group.standard]
    parts = ["# Memory suite", f"{ABOUT}\n{MARKS}", "## What was run", *_what(groups)]
    if standard:
        parts.append("## Overview")
        for form, inside in _forms(standard):
            parts += [
                f"The last and hardest test of every task, {form} form.",
                overview_table(inside).markdown(legend=False),
            ]
            parts += _shown(pictures, folder, None, form)
    parts += [findings.strip("\n")] if findings.strip() else []
    for family, tasks in by_family(group.task for group in standard).items():
        parts += _section(family, [group for group in standard if group.task in tasks], pictures, folder)
    parts += [*_named(groups), *_certified(certificates), *_changes(groups), "## Failures", *_failures(groups)]
    return "\n\n".join(parts) + "\n"


def _what(groups: Sequence[Group]) -> list[str]:
    """What was run, when nothing but records is known: forms, seeds, sizes, versions, machines, seconds."""
    parts = []
    for form, inside in _forms(groups):
        runs = [record for group in inside for record in group.records]
        seconds = sum(run.get("seconds_training", 0.0) + run.get("seconds_testing", 0.0) for run in runs)
        seeds = sorted({run["seed"] for run in runs})
        lines = [
            f"- {form} form: {len(runs):,} runs, {len({g.task for g in inside})} tasks, seeds {_list(seeds)}",
            f"- trained for {_range([run['steps'] for run in runs if 'steps' in run])} steps",
            f"- {seconds:,.0f} seconds in total, on {_list(_devices(runs))}",
            f"- versions: {_list(_versions(runs))}",
        ]
        parts.append("\n".join(lines))
    sizes: dict[str, list[int]] = {}
    for group in groups:
        sizes.setdefault(group.mixer, []).extend(r["parameters"] for r in group.records if "parameters" in r)
    rows = [f"| {mixer} | {_range(sizes[mixer])} |" for mixer in sorted(sizes, key=mixer_order)]
    return [*parts, "\n".join(["| mixer | parameters, by task |", "|---|---:|", *rows])]


def _section(family: Family, groups: Sequence[Group], pictures: Sequence[Picture], folder: Path) -> list[str]:
    parts = [f"## {family.title}", *_definitions([group.task for group in groups])]
    forms = _forms(groups)
    for form, inside in forms:
        parts += [f"### {family.title}, {form} form"] if len(forms) > 1 else []
        parts += [_trained(inside), _code(commands(inside))]
        for heading, table in family_tables(family, inside):
            parts += [f"**{heading}**"] if heading else []
            parts.append(table.markdown(legend=False))
        parts += _shown(pictures, folder, family, form)
    return parts


def _definitions(tasks: Sequence[str]) -> list[str]:
    """Each definition once, behind the tasks that it is of."""
    from hybridlm.evaluation.memory.registry import definition

    found: dict[str, list[str]] = {}
    for task in dict.fromkeys(tasks):
        text = definition(task)
        if text is not None:
            found.setdefault(text, []).append(task)
    return [f"**{', '.join(names)}**: {text}" for text, names in found.items()]


def _trained(groups: Sequence[Group]) -> str:
    found: dict[str, dict[str, None]] = {}
    for group in groups:
        for run in group.records:
            if "steps" in run and "rows" in run:
                found.setdefault(f"{run['steps']:,} steps of {run['rows']:,} sequences", {})[group.task] = None
    if len(found) == 1:
        return f"Trained for {next(iter(found))}."
    return f"Trained for {'; '.join(f'{budget} ({_list(tasks)})' for budget, tasks in found.items())}."


def _named(groups: Sequence[Group]) -> list[str]:
    """Runs of recipes that have a name: failing lengths, a row for each change beside it."""
    parts = []
    for name, recipe in RECIPES.items():
        for form, inside in _forms([group for group in groups if group.recipe == name]):
            parts += [f"## Recipe {name}, {form} form", recipe.about, _trained(inside), _code(commands(inside))]
            table = failing_table(inside, lambda group: ", ".join([group.mixer, *group.change.split(", ")[1:]]))
            parts += [table.markdown(legend=False)] if table else []
    return parts


def _certified(certificates: Iterable[dict[str, Any]]) -> list[str]:
    table = certificate_table(certificates)
    if table is None:
        return []
    about = (
        "What `hybridlm certify` says of models that `--keep` has kept, trained by the commands above. "
        '"Correct at every length" is shown, not sampled, so the failing length is beyond any that is tested: head by '
        "head it is a proof that covers rounding; as a whole, rounding is tried. Margins are by how much the right "
        "answer, and the transition taken, lead over the next ones, at the least of the seeds."
    )
    return ["## Certificates", about, table.markdown(legend=False)]


def _changes(groups: Sequence[Group]) -> list[str]:
    """Runs with a changed recipe that has no name, beside the standard ones."""
    groups = [group for group in groups if group.recipe is None]
    changed = [group for group in groups if not group.standard]
    if not changed:
        return []
    parts = ["## Ablations", "Each change of the recipe beside the standard one.", _code(commands(changed))]
    for task, form in dict.fromkeys((group.task, group.form) for group in changed):
        inside = [group for group in groups if (group.task, group.form) == (task, form)]
        parts += [f"**{task}**, {form} form", change_table(inside).markdown(legend=False)]
    return parts


def _failures(groups: Sequence[Group]) -> list[str]:
    """Runs that diverged, and tests that were skipped."""
    lines = []
    for group in groups:
        if group.diverged:
            change = f", {group.change}" if group.changed else ""
            lines.append(
                f"- diverged in training: {group.task}, {group.form} form, {group.mixer}{change}, "
                f"{'seed' if len(group.diverged) == 1 else 'seeds'} {_list(group.diverged)}"
            )
    skipped: dict[tuple[str, str], dict[str, None]] = {}
    for group in groups:
        for score in group.scores.values():
            if score.skipped is not None:
                skipped.setdefault((group.mixer, score.skipped), {})[f"{group.task} {score.test}"] = None
    lines += [f"- skipped, {mixer}: {_list(tests)} ({reason})" for (mixer, reason), tests in skipped.items()]
    return ["\n".join(lines) if lines else "No run diverged, and no test was skipped."]


def _shown(pictures: Sequence[Picture], folder: Path, family: Family | None, form: str) -> list[str]:
    links = []
    for picture in pictures:
        if picture.family == family and picture.form == form:
            path = Path(os.path.relpath(picture.path, folder)).as_posix().replace(" ", "%20")
            links.append(f"![{picture.title}]({path})")
    return links


def _forms(groups: Sequence[Group]) -> list[tuple[str, list[Group]]]:
    forms = dict.fromkeys(group.form for group in groups)
    return [(form, [group for group in groups if group.form == form]) for form in forms]


def _devices(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Such as "cpu (1 thread)"."""
    found = dict.fromkeys((run.get("device", "unknown"), run.get("threads")) for run in runs)
    return [d if n is None else f"{d} ({n} {'thread' if n == 1 else 'threads'})" for d, n in found]


def _versions(runs: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(f"{name} {version}" for run in runs for name, version in run.get("versions", {}).items()))


def _range(numbers: Sequence[int]) -> str:
    if not numbers:
        return "unknown"
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} – {high:,}"


def _list(things: Iterable[Any]) -> str:
    return ", ".join(map(str, things))


def _code(lines: Sequence[str]) -> str:
    return "\n".join(["```", *lines, "```"])
