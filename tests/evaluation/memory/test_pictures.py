"""What is drawn is what was measured, inside the axes, and named."""

import math
from itertools import pairwise

import pytest
from memory_records import MIXERS, errors, failing, record, skipped, squares, suite

from hybridlm.evaluation.memory import pictures
from hybridlm.evaluation.memory.families import family_of
from hybridlm.evaluation.memory.panels import panels_of
from hybridlm.evaluation.memory.pictures import curves_figure, draw, failing_figure, goodness, overview_figure, spread
from hybridlm.evaluation.memory.styles import styles
from hybridlm.evaluation.memory.summary import Score, summarize
from hybridlm.evaluation.plots import _pyplot


@pytest.fixture(scope="module")
def groups():
    return summarize(suite(seeds=(0, 1), mixers=["bmru", "lru", "attention"]))


@pytest.fixture
def plt():
    plt = _pyplot()
    yield plt
    plt.close("all")


def inside(axis):
    """Whether every point and bar of an axis is in its limits."""
    (left, right), (bottom, top) = axis.get_xlim(), sorted(axis.get_ylim())
    points = [point for line in axis.lines for point in line.get_xydata()]
    points += [end for bars in axis.collections for segment in bars.get_segments() for end in segment]
    return all(left <= x <= right and bottom <= y <= top for x, y in points) and points


def drawn(axis):
    """Label -> the heights of a mixer's points."""
    return {bars.get_label(): bars.lines[0].get_ydata().tolist() for bars in axis.containers}


def panels(groups, *tasks, counted=False):
    return panels_of([group for group in groups if group.task in tasks], counted)


def test_one_picture_for_each_family_and_an_overview(tmp_path):
    made = suite(seeds=(0,), mixers=["bmru"])
    keep = {"copy_first_50", "copy_first_600", "z2", "zebra"}
    made = [each for each in made if each["task"] in keep] + [record([errors("1x", 51, 1)], "zebra", changed={"lr": 1})]
    found = draw(summarize(made), tmp_path / "pictures")
    names = ["overview_quick.png", "copy_first_quick.png", "formal_quick.png", "formal_failing_quick.png"]
    assert [picture.path.name for picture in found] == names
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == sorted(names)
    assert all(picture.path.read_bytes().startswith(b"\x89PNG") for picture in found)
    assert _pyplot().get_fignums() == []


def test_a_family_is_a_panel_for_each_task_with_a_line_for_each_mixer(groups, plt):
    tasks = [f"copy_first_{steps}" for steps in (50, 100, 300, 600)]
    figure = curves_figure(plt, panels(groups, *tasks), "Copying")
    assert [axis.get_title() for axis in figure.axes] == tasks
    for axis in figure.axes:
        assert list(drawn(axis)) == ["bmru", "lru", "attention"]
        assert inside(axis)
        assert axis.get_xscale() == axis.get_yscale() == "log"
    by_mixer = {group.mixer: group for group in groups if group.task == "copy_first_600"}
    for mixer, heights in drawn(figure.axes[3]).items():
        expected = [score.middle for score in by_mixer[mixer].scores.values() if score.values]
        assert heights == pytest.approx(expected)
        assert len(heights) == (2 if mixer == "attention" else 3)


def test_bars_reach_from_the_best_to_the_worst_seed(plt):
    made = [record([errors("1x", 51, w, 10), errors("10x", 501, 5, 10)], seed=s) for s, w in enumerate((1, 2, 6))]
    (axis,) = curves_figure(plt, panels_of(summarize(made), False), "t").axes
    (bars,) = axis.collections
    first, second = (sorted(segment[:, 1]) for segment in bars.get_segments())
    assert first == pytest.approx([0.1, 0.6])
    assert second == pytest.approx([0.5, 0.5])
    assert drawn(axis)["bmru"] == pytest.approx([0.3, 0.5])


def test_mixers_stand_side_by_side_at_their_length():
    made = [record([errors("1x", 50, 0), errors("10x", 500, 0)], mixer=mixer) for mixer in MIXERS]
    (panel,) = panels_of(summarize(made), False)
    across = [panel.points(at, scores)[0] for at, scores in enumerate(panel.curves.values())]
    for place, xs in zip((50, 500), zip(*across, strict=True), strict=True):
        steps = [math.log(b / a) for a, b in pairwise(xs)]
        assert min(steps) == pytest.approx(max(steps))
        assert math.sqrt(xs[0] * xs[-1]) == pytest.approx(place)
    assert across[0][1] / across[-1][0] > across[-1][0] / across[0][0]  # further from the next place than apart
    (few,) = panels_of(summarize(made[:2]), False)
    ends = [few.points(at, scores)[0][0] for at, scores in enumerate(few.curves.values())]
    assert ends[1] / ends[0] == pytest.approx(across[1][0] / across[0][0])


def test_values_that_are_not_finite_or_zero_are_drawn_at_the_edges(plt):
    made = [
        record([squares("1x", 51, 0.0), squares("10x", 501, math.inf)], mixer="bmru"),
        record([squares("1x", 51, 0.02), squares("10x", 501, 3.0)], mixer="lru"),
    ]
    (axis,) = curves_figure(plt, panels_of(summarize(made), False), "t").axes
    assert inside(axis)
    assert drawn(axis)["bmru"] == pytest.approx([0.01, 3.0])
    assert axis.get_yticklabels()[0].get_text() == "0"


def test_counted_error_rates_are_logarithmic_and_zero_is_at_the_bottom(groups, plt):
    sparse, dense = panels(groups, "flip_flop", counted=True)
    assert (sparse.title, dense.title) == ("flip_flop, sparse", "flip_flop, dense")
    assert sparse.places == [512, 2048, 8192]
    assert sparse.floor == 1e-6  # the power of ten below half an error in 2 * 65,536
    for axis in curves_figure(plt, [sparse, dense], "t").axes:
        assert axis.get_yscale() == "log"
        assert inside(axis)


def test_tests_of_the_same_length_are_side_by_side(groups, plt):
    (panel,) = panels(groups, "mqar")
    assert (panel.lengths, panel.places, panel.names) == (False, [0, 1, 2], ["1x", "4x", "2x pairs"])
    (axis,) = curves_figure(plt, [panel], "t").axes
    assert inside(axis)
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["bmru", "lru", "attention"]


def test_curves_of_the_same_lengths_have_panels_of_their_own(groups):
    assert [panel.title for panel in panels(groups, "corridor_two")] == ["corridor_two, first", "corridor_two, second"]
    assert [panel.places for panel in panels(groups, "corridor_two")] == [[100, 1000, 10_000]] * 2


def test_tasks_of_one_test_share_a_panel(groups):
    (panel,) = panels(groups, "mnist", "mnist_permuted", "mnist_permuted_blank")
    assert panel.names == ["mnist", "mnist\npermuted", "mnist\npermuted\nblank"]


def test_a_task_that_nothing_was_measured_in_is_not_drawn(plt):
    made = [record([skipped("1x", 51)]), record([errors("1x", 51, 1)], "copy_first_100", loss=None)]
    made.append(record([failing(3)], "z2"))
    assert panels_of(summarize(made), False) == []
    figure = overview_figure(plt, summarize(made))
    assert len(figure.axes[0].patches) == 3
    figure.canvas.draw()
    label = figure.axes[0].xaxis.label.get_window_extent()
    assert figure.bbox.x0 <= label.x0 < label.x1 <= figure.bbox.x1


def test_all_twelve_names_are_apart_and_inside_the_picture(plt):
    made = [
        record([errors("1x", 51, 0), errors("10x", 501, 0 if number % 3 else 900)], mixer=mixer)
        for number, mixer in enumerate(MIXERS)
    ]
    figure = curves_figure(plt, panels_of(summarize(made), False), "t")
    figure.canvas.draw()
    (axis,) = figure.axes
    names = [text for text in axis.texts if text.get_text() in MIXERS]
    assert sorted(text.get_text() for text in names) == sorted(MIXERS)
    boxes = [super(type(text), text).get_window_extent() for text in names]
    for number, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:number])


def test_names_are_spread_around_where_they_belong():
    assert spread([0.2, 0.8], 0.1) == [0.2, 0.8]
    assert spread([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.4, 0.5, 0.6])
    assert spread([0.5, 0.55, 0.9], 0.1) == pytest.approx([0.475, 0.575, 0.9])
    low, high = pictures._REACH
    assert spread([0.0] * 3, 0.1) == pytest.approx([low, low + 0.1, low + 0.2])
    assert spread([1.0] * 3, 0.1) == pytest.approx([high - 0.2, high - 0.1, high])


def test_failing_lengths_are_a_panel_for_each_task_and_a_row_for_each_mixer(plt):
    made = [record([failing(n)], "z2", "bmru", seed) for seed, n in enumerate((100, None, 200))]
    made += [record([failing(None)], "z2", "lru"), record([failing(50)], "parity", "lru")]
    made += [
        record([skipped("failing length", 32_768)], "z2", "attention"),
        record([failing(5)], "z2", "gru", loss=None),
    ]
    figure = failing_figure(plt, summarize(made), "t")
    parity, z2 = figure.axes
    assert (parity.get_title(), z2.get_title()) == ("parity", "z2")
    assert [label.get_text() for label in parity.get_yticklabels()] == ["bmru", "lru", "attention", "gru"]
    assert inside(parity)
    seeds, median, beyond, _, never, published = z2.lines
    assert seeds.get_xydata().tolist() == [[100, 0], [32_768, 0]]
    assert (median.get_xydata().tolist(), median.get_marker()) == ([[200, 0]], "o")
    assert (beyond.get_xydata().tolist(), beyond.get_marker()) == ([[32_768, 0]], ">")
    assert (never.get_xydata().tolist(), never.get_marker()) == ([[32_768, 1]], ">")
    assert list(published.get_xdata()) == [4352, 4352]
    assert z2.get_xlim()[0] < 1
    assert z2.get_xlim()[1] > 32_768
    assert [text.get_text() for text in z2.texts] == ["n/a", "diverged"]
    assert [text.get_text() for text in parity.texts] == ["-", "-", "-"]


def test_the_overview_has_a_cell_for_each_task_and_mixer(groups, plt):
    (axis,) = overview_figure(plt, groups).axes
    tasks = list(dict.fromkeys(group.task for group in groups))
    assert len(axis.patches) == len(axis.texts) == 3 * len(tasks)
    assert [label.get_text() for label in axis.get_xticklabels()] == ["bmru", "lru", "attention"]
    assert [label.get_text().split(",")[0] for label in axis.get_yticklabels()] == tasks
    assert axis.texts[0].get_text() == "1.1"
    assert len(axis.lines) == len({family_of(task) for task in tasks}) - 1


def test_dark_is_good():
    def good(kind, value, length=1000):
        return goodness(Score("t", length, kind, (value,)))

    assert [good("error rate", value) for value in (0, 0.25, 1)] == [1, 0.75, 0]
    assert [good("squared error", value) for value in (0, 0.25, 1, 7, math.inf)] == [1, 0.75, 0, 0, 0]
    assert [good("failing length", value) for value in (1, 10, math.inf)] == [0, pytest.approx(1 / 3), 1]


def test_every_mixer_has_a_look_of_its_own_that_stays():
    looks = styles([*MIXERS, "new", "newer"])
    assert len({look.color for look in looks.values()}) == 14
    assert len({(look.marker, look.line) for look in looks.values()}) >= 12
    assert styles(["lru"])["lru"] == looks["lru"]
