"""Formal languages and word problems, against references in plain Python that know nothing of tables of states."""

from itertools import pairwise, permutations

import pytest
import torch

from hybridlm.evaluation.memory.formal import Automaton, Parity, dyck1_depth, dyck2_depth, modular_counting
from hybridlm.evaluation.memory.registry import TASKS
from hybridlm.evaluation.memory.word_problems import cyclic, flip_flop_dense, symmetric, word_problem

NAMES = ["parity", "modular_counting", "dyck1_depth", "dyck2_depth", "flip_flop_dense", "z2", "z16", "s3", "s4", "a5"]
GROUPS = {
    "z2": (cyclic(2), 2),
    "z16": (cyclic(16), 16),
    "s3": (symmetric(3), 6),
    "s4": (symmetric(4), 24),
    "a5": (symmetric(5, even=True), 60),
}
OPEN1, CLOSE1 = 0, 1
OPEN2, CLOSE2 = (0, 1), (2, 3)


def drawn(task, length=200, rows=40, seed=0):
    """Sequences of letters and of labels, as lists."""
    batch = task.of_length(length, rows, torch.Generator().manual_seed(seed))
    assert batch.inputs.shape == batch.targets.shape == (rows, length)
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    return list(zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True))


def share(values, wanted):
    return sum(value == wanted for value in values) / len(values)


@pytest.mark.parametrize("name", NAMES)
def test_forms_lengths_and_seeds(name):
    """Trained at length 64 alone, one plain test and one that looks for the failing length; a seed decides a batch."""
    for quick, budget, longest in ((True, (2000, 16), 4096), (False, (5000, 64), 32768)):
        task = TASKS[name](quick)
        assert (task.quick, (task.budget.steps, task.budget.rows)) == (quick, budget)
        plain, failing = task.tests()
        assert (plain.name, plain.length, plain.rows, plain.failing) == ("1x", 64, 512, False)
        assert (failing.name, failing.length, failing.rows, failing.failing) == ("failing length", longest, 512, True)
    first, again, other = (task.batch(64, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert first.inputs.shape == (64, 64)
    assert first.inputs.equal(again.inputs)
    assert first.targets.equal(again.targets)
    assert not first.inputs.equal(other.inputs)
    batch = task.batch(512, torch.Generator().manual_seed(5))
    assert batch.inputs.unique().tolist() == list(range(task.inputs))
    assert batch.targets.unique().tolist() == list(range(task.outputs))
    assert failing.make(3, torch.Generator().manual_seed(0)).targets.shape == (3, 32768)


def test_parity_and_how_frequent_ones_are():
    rows = drawn(Parity(), rows=400)
    for bits, labels in rows:
        assert labels == [sum(bits[: t + 1]) % 2 for t in range(len(bits))]
    frequencies = [share(bits, 1) for bits, _ in rows]
    assert sum(frequencies) / len(frequencies) == pytest.approx(0.5, abs=0.05)
    for edge in (0.275, 0.725):  # a quarter of the range on each side; fair bits would have nearly none there
        beyond = sum(abs(frequency - 0.5) > abs(edge - 0.5) for frequency in frequencies)
        assert beyond / len(frequencies) == pytest.approx(0.5, abs=0.08)
    assert min(frequencies) < 0.12
    assert max(frequencies) > 0.88


def test_modular_counting():
    rows = drawn(modular_counting())
    for letters, labels in rows:
        assert labels == [sum(letters[: t + 1]) % 5 for t in range(len(letters))]
    letters = [letter for word, _ in rows for letter in word]
    assert [share(letters, letter) for letter in range(3)] == pytest.approx([1 / 3] * 3, abs=0.03)


def test_dyck1_words_are_legal_and_turn_only_at_the_ends():
    rows = drawn(dyck1_depth(), rows=200)
    inside = []
    for letters, labels in rows:
        depth = 0
        for letter, label in zip(letters, labels, strict=True):
            if 0 < depth < 8:
                inside.append(letter)
            depth += 1 if letter == OPEN1 else -1
            assert 0 <= depth <= 8
            assert label == depth
    assert share(inside, OPEN1) == pytest.approx(0.5, abs=0.02)
    assert {label for _, labels in rows for label in labels} == set(range(9))


def test_dyck2_words_are_legal_and_closing_brackets_match():
    rows = drawn(dyck2_depth(), rows=200)
    inside, opened = [], []
    for letters, labels in rows:
        stack = []
        for letter, label in zip(letters, labels, strict=True):
            if 0 < len(stack) < 4:
                inside.append(letter in OPEN2)
            if letter in OPEN2:
                stack.append(OPEN2.index(letter))
                opened.append(letter)
            else:
                assert stack.pop() == CLOSE2.index(letter)
            assert len(stack) <= 4
            assert label == (2 * (len(stack) - 1) + stack[-1] + 1 if stack else 0)
    assert share(inside, True) == pytest.approx(0.5, abs=0.02)
    assert share(opened, OPEN2[0]) == pytest.approx(0.5, abs=0.02)
    assert {label for _, labels in rows for label in labels} == set(range(9))


def test_dyck2_needs_the_stack():
    """The same depth and innermost kind, the same closing bracket after it, and yet different labels."""
    after = {}
    for letters, labels in drawn(dyck2_depth(), rows=50):
        for before, (letter, label) in zip(labels, zip(letters[1:], labels[1:], strict=True), strict=False):
            after.setdefault((before, letter), set()).add(label)
    assert after[(3, CLOSE2[0])] == {1, 2}


def test_flip_flop_follows_the_last_letter_that_is_not_hold():
    hold, reset, put = range(3)
    rows = drawn(flip_flop_dense())
    for letters, labels in rows:
        for t, label in enumerate(labels):
            told = [letter for letter in letters[: t + 1] if letter != hold]
            assert label == int(bool(told) and told[-1] == put)
    letters = [letter for word, _ in rows for letter in word]
    assert [share(letters, letter) for letter in (hold, reset, put)] == pytest.approx([1 / 3] * 3, abs=0.03)


@pytest.mark.parametrize(("table", "order"), GROUPS.values(), ids=GROUPS)
def test_tables_are_groups(table, order):
    """Identity 0, inverses, and associativity over all triples: (a b) c = a (b c)."""
    assert table.shape == (order, order)
    elements = torch.arange(order)
    assert table[0].equal(elements)
    assert table[:, 0].equal(elements)
    assert all(table.sort(axis).values.equal(elements.expand_as(table).movedim(-1, axis)) for axis in (0, 1))
    assert table[table].equal(table[elements[:, None, None], table])


def test_only_the_groups_of_permutations_do_not_commute():
    assert {name for name, (table, _) in GROUPS.items() if not table.equal(table.T)} == {"s3", "s4", "a5"}


def cycles(permutation):
    """Number of cycles; a permutation of n points is even where n minus this is."""
    left, count = set(range(len(permutation))), 0
    while left:
        point, count = min(left), count + 1
        while point in left:
            left.remove(point)
            point = permutation[point]
    return count


def test_a5_has_its_orders_of_elements():
    """Of its 60 elements, 15 are of order 2, 20 of order 3 and 24 of order 5."""
    table = symmetric(5, even=True)
    counts = {}
    for element in range(60):
        power, order = element, 1
        while power:
            power, order = int(table[power, element]), order + 1
        counts[order] = counts.get(order, 0) + 1
    assert counts == {1: 1, 2: 15, 3: 20, 5: 24}


@pytest.mark.parametrize(("name", "points"), [("s3", 3), ("s4", 4), ("a5", 5)])
def test_products_of_permutations(name, points):
    """Labels, by following every point through the permutations, the last letter first."""
    elements = [p for p in permutations(range(points)) if name != "a5" or (points - cycles(p)) % 2 == 0]
    assert len(elements) == GROUPS[name][1]
    for letters, labels in drawn(TASKS[name](True), length=40, rows=20):
        for t, label in enumerate(labels):
            images = []
            for point in range(points):
                for letter in reversed(letters[: t + 1]):
                    point = elements[letter][point]
                images.append(point)
            assert elements[label] == tuple(images)


@pytest.mark.parametrize(("name", "order"), [("z2", 2), ("z16", 16)])
def test_products_in_cyclic_groups(name, order):
    for letters, labels in drawn(TASKS[name](True)):
        assert labels == [sum(letters[: t + 1]) % order for t in range(len(letters))]


@pytest.mark.parametrize("name", GROUPS)
def test_letters_are_uniform_and_so_are_labels(name):
    task, order = word_problem(GROUPS[name][0]), GROUPS[name][1]
    rows = drawn(task, rows=200, length=250)
    for kind in (0, 1):
        counts = torch.tensor([row[kind] for row in rows]).flatten().bincount(minlength=order)
        assert (counts * order / counts.sum()).tolist() == pytest.approx([1.0] * order, abs=0.2)
    pairs = {pair for letters, _ in rows for pair in pairwise(letters)}
    assert len(pairs) > 0.99 * order**2


def test_an_automaton_walks_as_its_tables_say():
    """Three states, letters that are not all allowed or not alike likely, and labels that join two states."""
    following = [[1, 2], [2, 0], [0, 1]]
    choices, labels_of = [[0, 1, 1], [0, 0, 1], [1, 1, 1]], [0, 1, 1]
    task = Automaton(torch.tensor(following), torch.tensor(choices), torch.tensor(labels_of))
    assert (task.inputs, task.outputs) == (2, 2)
    taken = {0: [], 1: [], 2: []}
    for letters, labels in drawn(task, length=100, rows=100):
        state = 0
        for letter, label in zip(letters, labels, strict=True):
            taken[state].append(letter)
            state = following[state][letter]
            assert label == labels_of[state]
    assert [share(taken[state], 1) for state in range(3)] == pytest.approx([2 / 3, 1 / 3, 1.0], abs=0.03)
