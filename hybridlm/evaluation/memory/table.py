"""Scores as tables, in Markdown and as plain text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hybridlm.evaluation.memory.families import PUBLISHED, Family, by_family, mixer_order
from hybridlm.evaluation.memory.summary import Group, Score, columns_of, is_failing

BEST = "Bold: of at least two seeds, all are better than every seed of every other mixer; equals share it."
DIVERGED = "†n: n more runs diverged in training; they are not in the number."
INTERVAL = (
    "In brackets: Wilson's 95 % interval, all seeds together. It is of the sampling of positions alone: seeds differ "
    "by more, and reads of one write stand or fall together."
)
PUBLISHED_ROW = "Mamba variant, published"


@dataclass(frozen=True)
class Cell:
    text: str
    bold: bool = False
    note: int | None = None


@dataclass
class Table:
    """header: the first is of the rows' names. footnotes: numbered, a cell's `note` is its number. notes: of the whole
    table. legend: what its marks mean, which a page of many tables says once."""

    header: list[str]
    rows: list[list[Cell]]
    footnotes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    legend: list[str] = field(default_factory=list)

    def markdown(self, legend: bool = True) -> str:
        lines = [_line(self.header), "|---" + "|---:" * (len(self.header) - 1) + "|"]
        for row in self.rows:
            lines.append(_line([_marked(cell) for cell in row]))
        notes = [f"{number}. {_escaped(note)}" for number, note in enumerate(self.footnotes, 1)]
        if notes:
            lines += ["", *notes]
        return "\n".join(lines + [text for note in self.notes + self.legend * legend for text in ("", note)])

    def plain(self) -> str:
        """Aligned columns; a star stands for bold."""
        body = [[_plain(cell) for cell in row] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(self.header, *body, strict=True)]
        lines = []
        for row in [self.header, *body]:
            cells = [row[0].ljust(widths[0]), *(text.rjust(w) for text, w in zip(row[1:], widths[1:], strict=True))]
            lines.append("  ".join(cells).rstrip())
        lines += [f"[{number}] {note}" for number, note in enumerate(self.footnotes, 1)]
        return "\n".join(lines + self.notes + [text.replace("Bold", "*") for text in self.legend])


def family_tables(family: Family, groups: Sequence[Group]) -> list[tuple[str, Table]]:
    """All tables of a family's tasks in one form, each with the name of its task, "" where it is of several."""
    failing, shared = failing_table(groups), shared_table(groups)
    found = [("", table) for table in (failing, shared) if table is not None]
    for task, inside in _by_task(groups).items():
        one = None if shared else task_table(inside, failing=False)
        counts = counts_table(inside) if family.counted else None
        found += [(task, table) for table in (one, counts) if table is not None]
    return found


def all_tables(groups: Sequence[Group]) -> str:
    """Everything as plain text, for a terminal: the tables of each form and family, then what was changed."""
    parts = []
    standard = [group for group in groups if group.standard]
    for form in dict.fromkeys(group.form for group in standard):
        here = [group for group in standard if group.form == form]
        for family, tasks in by_family(group.task for group in here).items():
            for task, table in family_tables(family, [group for group in here if group.task in tasks]):
                parts.append(f"{task or family.title}, {form} form\n{table.plain()}")
    for task, form in dict.fromkeys((group.task, group.form) for group in groups if not group.standard):
        inside = [group for group in groups if (group.task, group.form) == (task, form)]
        parts.append(f"{task}, {form} form, changes\n{change_table(inside).plain()}")
    return "\n\n".join(parts)


def task_table(groups: Sequence[Group], failing: bool = True) -> Table | None:
    """Rows: the mixers of one task and form. Columns: its tests, without those for failing lengths if not `failing`;
    None where no column is left."""
    tests = columns_of(groups, failing)
    if not tests:
        return None
    rows = {group.mixer: [group.scores.get(name) for name in tests] for group in groups}
    return build(*_headings("mixer", groups, tests), rows)


def shared_table(groups: Sequence[Group]) -> Table | None:
    """One table for the tasks of one form, where each has a single test besides failing lengths. Rows: mixers. Columns:
    tasks. None where some task has more, or there are fewer than two."""
    tests = {task: columns_of(inside, failing=False) for task, inside in _by_task(groups).items()}
    columns = [(task, names[0]) for task, names in tests.items() if names]
    if len(columns) < 2 or any(len(names) > 1 for names in tests.values()):
        return None
    titles = [task if name == "test" else f"{task}, {name}" for task, name in columns]
    kinds = {group.scores[name].kind for group in groups for task, name in columns if _has(group, task, name)} - {None}
    return build(f"mixer: {kinds.pop()}" if len(kinds) == 1 else "mixer", titles, _across_tasks(groups, columns))


def failing_table(groups: Sequence[Group], name: Callable[[Group], str] = lambda group: group.mixer) -> Table | None:
    """Rows: mixers, or what `name` says, and what was published. Columns: the tasks of one form that have failing
    lengths; None where there are none."""
    tests = {
        task: [n for n in columns_of(inside) if is_failing(inside, n)] for task, inside in _by_task(groups).items()
    }
    columns = [(task, name) for task, names in tests.items() for name in names]
    if not columns:
        return None
    several = any(len(names) > 1 for names in tests.values())
    titles = [f"{task}, {name}" if several else task for task, name in columns]
    table = build("mixer: failing length", titles, _across_tasks(groups, columns, name))
    if any(task in PUBLISHED for task, _ in columns):
        table.rows.append([Cell(PUBLISHED_ROW), *(_published(task) for task, _ in columns)])
        table.notes.append(
            f"{PUBLISHED_ROW}: medians from Length-independent state tracking under a parallel scan (Liège, 2026)."
        )
    return table


def counts_table(groups: Sequence[Group]) -> Table | None:
    """The error rates behind which many positions stand: errors of positions, and Wilson's 95 % interval. None where
    there are none."""
    tests = [name for name in columns_of(groups) if any(_interval(group.scores.get(name)) for group in groups)]
    if not tests:
        return None
    rows = [[Cell(group.mixer), *(_counts(group.scores.get(name)) for name in tests)] for group in groups]
    return Table(["errors / asked", *tests], rows, notes=[INTERVAL])


def overview_table(groups: Sequence[Group], best: bool = True) -> Table:
    """Rows: tasks, each with its last test, the hardest. Columns: the mixers of one form. Middles only. best: mark the
    best of each row."""
    mixers = sorted({group.mixer for group in groups}, key=mixer_order)
    rows = {}
    for task in dict.fromkeys(group.task for group in groups):
        here = {group.mixer: group for group in groups if group.task == task}
        hardest = columns_of(list(here.values()))[-1]
        scores = [here[mixer].scores.get(hardest) if mixer in here else None for mixer in mixers]
        rows[f"{task}, {hardest}"] = scores
    return build("task, test", mixers, rows, across=True, ranges=False, best=best)


def change_table(groups: Sequence[Group]) -> Table:
    """One task and form: for each mixer with a changed recipe the standard one, then each change."""
    changed = {group.mixer for group in groups if not group.standard}
    groups = [group for group in groups if group.mixer in changed]
    tests = columns_of(groups)
    rows = [(f"{group.mixer}, {group.change or 'standard'}", group) for group in groups]
    scores = {label: [group.scores.get(name) for name in tests] for label, group in rows}
    return build(*_headings("mixer, recipe", groups, tests), scores, best=False)


def build(
    corner: str,
    columns: Sequence[str],
    rows: Mapping[str, Sequence[Score | None]],
    across: bool = False,
    ranges: bool = True,
    best: bool = True,
) -> Table:
    """A table of scores. across: the best is sought in each row, not in each column. ranges: show smallest and
    largest."""
    scores = list(rows.values())
    lines = scores if across else list(zip(*scores, strict=True))
    bold = {id(score) for line in lines for score in _clearly_best(line)} if best else set()
    table = Table([corner, *columns], [])
    for name, line in rows.items():
        table.rows.append([Cell(name), *(_cell(score, id(score) in bold, ranges, table.footnotes) for score in line)])
    if bold:
        table.legend.append(BEST)
    if any("†" in cell.text for row in table.rows for cell in row):
        table.legend.append(DIVERGED)
    return table


def number(value: float) -> str:
    """Compact: three digits behind the point up to 1, then three digits; a power of ten where that hides the value."""
    if math.isinf(value):
        return "∞"
    if value == 0:
        return "0"
    if value < 0.001 or value >= 10_000:
        mantissa, power = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(power)}"
    return f"{value:.3f}" if value < 1 else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def length_text(value: float, limit: int) -> str:
    """A failing length; infinity is none up to the limit."""
    return f"> {limit:,}" if math.isinf(value) else f"{value:,.0f}"


def score_text(score: Score, ranges: bool = True) -> str:
    """The middle and, where it says more, smallest and largest in brackets."""
    if score.kind == "failing length":
        middle, low, high = (length_text(v, score.length) for v in (score.middle, score.low, score.high))
    else:
        middle, low, high = (number(v) for v in (score.middle, score.low, score.high))
    return middle if low == high or not ranges else f"{middle} ({low} – {high})"


def _cell(score: Score | None, bold: bool, ranges: bool, footnotes: list[str]) -> Cell:
    if score is None:
        return Cell("-")
    if score.values:
        return Cell(score_text(score, ranges) + (f" †{score.diverged}" if score.diverged else ""), bold)
    if score.skipped is not None:
        if score.skipped not in footnotes:
            footnotes.append(score.skipped)
        return Cell("n/a", note=footnotes.index(score.skipped) + 1)
    return Cell("diverged" if score.diverged else "-")


def _clearly_best(scores: Sequence[Score | None]) -> list[Score]:
    """Those that share the best place, where every other one's best seed is behind their worst. One that never failed,
    but was followed less far than others, may be anything beyond: it is not among them, nor clearly behind."""
    known = [score for score in scores if score is not None and score.values]
    farthest = max((score.length for score in known), default=0)
    sure = [s for s in known if s.kind != "failing length" or math.isfinite(s.high) or s.length == farthest]
    if not sure:
        return []
    sign = -1 if sure[0].kind == "failing length" else 1
    leader = min(sure, key=lambda score: (sign * score.middle, sign * score.worst))
    shared = (leader.low, leader.middle, leader.high)
    first = [score for score in sure if (score.low, score.middle, score.high) == shared]
    others = [score for score in known if score not in first]
    clear = others and sign * leader.worst < min(sign * score.best for score in others)
    return [score for score in first if len(score.values) > 1 and not score.diverged] if clear else []


def _headings(rows: str, groups: Sequence[Group], tests: Sequence[str]) -> tuple[str, list[str]]:
    """What stands in the corner, and above each test: where all numbers are of one kind, the corner says which."""
    kinds = {
        test: next(
            (group.scores[test].kind for group in groups if test in group.scores and group.scores[test].kind), None
        )
        for test in tests
    }
    known = set(kinds.values()) - {None}
    if len(known) == 1:
        return f"{rows}: {known.pop()}", list(tests)
    return rows, [test if kind in (None, test) else f"{test}, {kind}" for test, kind in kinds.items()]


def _by_task(groups: Sequence[Group]) -> dict[str, list[Group]]:
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.task, []).append(group)
    return found


def _across_tasks(
    groups: Sequence[Group],
    columns: Sequence[tuple[str, str]],
    name: Callable[[Group], str] = lambda group: group.mixer,
) -> dict[str, list[Score | None]]:
    """A row for each mixer, or what `name` says, a column for each (task, test)."""
    found = {(group.task, name(group)): group.scores for group in groups}
    rows = dict.fromkeys(name(group) for group in sorted(groups, key=lambda group: mixer_order(group.mixer)))
    return {row: [found.get((task, row), {}).get(test) for task, test in columns] for row in rows}


def _has(group: Group, task: str, test: str) -> bool:
    return group.task == task and test in group.scores


def _published(task: str) -> Cell:
    if task not in PUBLISHED:
        return Cell("-")
    length = PUBLISHED[task]
    return Cell("never learnt" if length is None else f"{length:,}")


def _interval(score: Score | None) -> tuple[float, float] | None:
    return None if score is None else score.interval


def _counts(score: Score | None) -> Cell:
    if score is None or score.interval is None:
        return Cell("-")
    low, high = score.interval
    return Cell(f"{score.wrong:,} / {score.asked:,} [{number(low)} – {number(high)}]")


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def _marked(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.bold else cell.text
    return text if cell.note is None else f"{text} <sup>{cell.note}</sup>"


def _plain(cell: Cell) -> str:
    text = f"{cell.text} *" if cell.bold else cell.text
    return text if cell.note is None else f"{text} [{cell.note}]"


def _escaped(note: str) -> str:
    """A reason cannot bring Markdown into a page."""
    return note.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")
