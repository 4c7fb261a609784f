"""What is known of a model after all words: on made-up models, and on real ones beside their own forward."""

import numpy as np
import pytest
import torch

from hybridlm import HybridLMConfig, HybridLMForTokenClassification
from hybridlm.evaluation.certificate.exploring import explore, true_machine
from hybridlm.evaluation.certificate.machine import NOWHERE
from hybridlm.evaluation.certificate.stepping import Stepper
from hybridlm.evaluation.memory.registry import TASKS


class MadeUp:
    """A model whose state is a row of numbers that `move` changes; it answers with class `answer(row)`."""

    def __init__(self, start, move, answer, classes):
        self.first, self.move, self.answer, self.classes = np.array([start], dtype=float), move, answer, classes
        self.decided = np.array([True] * (len(start) - 1) + [False])  # the last one is a window

    def start(self):
        return self.first

    def step(self, rows, letters):
        after = np.array([self.move(row, letter) for row, letter in zip(rows, letters, strict=True)], dtype=float)
        logits = torch.zeros(len(rows), self.classes)
        for place, row in enumerate(after):
            logits[place, self.answer(row)] = 2.0
        return after, logits


def followed(task, spoiled=None):
    """A model that is the task's automaton, with an answer after the n-th letter spoiled where that is given."""
    transitions = task.transitions.tolist()

    def move(row, letter):
        return [transitions[int(row[0])][letter], min(row[1] + 1, spoiled or 0)]

    def answer(row):
        right = int(task.labels[int(row[0])])
        return (right + 1) % task.outputs if spoiled and row[1] == spoiled else right

    return MadeUp([0, 0], move, answer, task.outputs)


@pytest.mark.parametrize("name", ["z2", "s3", "flip_flop_dense", "dyck1_depth", "dyck2_depth", "modular_counting"])
def test_the_automaton_itself(name):
    task = TASKS[name](True)
    seen = explore(followed(task), task, 1000)
    assert seen.closed
    assert seen.failure is None
    assert seen.margin == 2.0
    assert seen.pairs == len(task.transitions)
    assert seen.machine.smallest().same_as(true_machine(task))


@pytest.mark.parametrize(
    ("name", "states"), [("z16", 16), ("s4", 24), ("a5", 60), ("dyck1_depth", 9), ("dyck2_depth", 31)]
)
def test_size_of_the_true_automata(name, states):
    machine = true_machine(TASKS[name](True))
    assert machine.states == states
    assert (machine.following == NOWHERE).any() == name.startswith("dyck")


@pytest.mark.parametrize("length", [1, 2, 5])
def test_shortest_word_with_an_error(length):
    task = TASKS["s3"](True)
    seen = explore(followed(task, spoiled=length), task, 1000)
    assert seen.closed
    assert len(seen.failure.word) == length
    state = 0
    for letter in seen.failure.word:
        state = task.transitions[state, letter]
    assert seen.failure.right == state
    assert seen.failure.said == (state + 1) % 6
    assert not seen.machine.smallest().same_as(true_machine(task))


def test_only_words_of_the_task_are_taken():
    """A model that goes wrong on a word that has no place in the language is right."""
    task = TASKS["dyck1_depth"](True)
    transitions = torch.where(task.transitions == 0, 0, task.transitions).tolist()
    transitions[0][1] = 5  # a closing bracket where none is open
    model = MadeUp([0], lambda row, letter: [transitions[int(row[0])][letter]], lambda row: int(row[0]), task.outputs)
    assert explore(model, task, 1000).failure is None


def test_a_counter_never_closes():
    """Right for as long as one looks, and not certain."""
    task = TASKS["z2"](True)
    model = MadeUp([0], lambda row, letter: [row[0] + letter], lambda row: int(row[0]) % 2, 2)
    seen = explore(model, task, 100)
    assert not seen.closed
    assert seen.machine is None
    assert seen.failure is None
    assert seen.longest == 100  # words of n letters reach the counts 0 to n


def test_states_are_told_apart_to_the_resolution():
    task = TASKS["z2"](True)
    for step, states in ((1e-12, 2), (1e-6, None)):
        model = MadeUp(
            [0, 0], lambda row, letter, s=step: [(row[0] + letter) % 2, row[1] + s], lambda row: int(row[0]), 2
        )
        seen = explore(model, task, 50)
        assert seen.closed == (states is not None)
        assert states is None or seen.states == states


@pytest.mark.parametrize("number", [3e9, -7e12, np.nan, np.inf])
def test_states_that_cannot_be_told_apart(number):
    model = MadeUp([0], lambda row, letter: [number], lambda row: 0, 2)
    with pytest.raises(FloatingPointError, match=r"a state of the model is no number, or above 1,048,576"):
        explore(model, TASKS["z2"](True), 10)


def test_steps_that_the_own_dtype_takes_otherwise():
    """One state is left otherwise, one answer is another; what a window holds may differ."""
    task = TASKS["z2"](True)

    def move(row, letter):
        return [(row[0] + letter) % 2, 0]

    def otherwise(row, letter):
        return [1 if (row[0], letter) == (0, 0) else (row[0] + letter) % 2, 7]

    def parity(row):
        return int(row[0])

    model = MadeUp([0, 0], move, parity, 2)
    assert (
        explore(model, task, 10, MadeUp([0, 0], lambda row, letter: [*move(row, letter)[:1], 7], parity, 2)).differing
        == 0
    )
    assert explore(model, task, 10, MadeUp([0, 0], otherwise, parity, 2)).differing == 1
    assert explore(model, task, 10, MadeUp([0, 0], move, lambda row: 0, 2)).differing == 2


def test_too_many_pairs_of_few_states():
    task = TASKS["a5"](True)
    seen = explore(MadeUp([0], lambda row, letter: row, lambda row: 0, 60), task, 50)
    assert (seen.closed, seen.states, seen.pairs) == (False, 1, 60)


def test_answers_that_are_no_numbers():
    task = TASKS["z2"](True)

    class Broken(MadeUp):
        def step(self, rows, letters):
            after, logits = super().step(rows, letters)
            return after, logits * torch.nan

    with pytest.raises(FloatingPointError, match="no number"):
        explore(Broken([0], lambda row, letter: row, lambda row: 0, 2), task, 10)


@pytest.mark.parametrize("pattern", ["nfsm bmru", "fqbmru", "bmru+nfsm"])
@pytest.mark.parametrize("conv_kernel", [0, 2])
def test_machine_answers_as_the_model_does(pattern, conv_kernel):
    """Random weights: what was read out says the same as one forward over long words."""
    task = TASKS["flip_flop_dense"](True)
    torch.manual_seed(3)
    config = HybridLMConfig(
        pattern=pattern, vocab_size=3, num_labels=2, hidden_size=4, num_attention_heads=1, conv_kernel=conv_kernel,
        nfsm_heads=2, nfsm_states=3, initializer_range=0.5, threshold_init=0.3,
    )  # fmt: skip
    model = HybridLMForTokenClassification(config)
    seen = explore(Stepper(model), task, 5000)
    assert seen.closed
    assert 2 < seen.states < 5000
    words = torch.randint(0, 3, (8, 200))
    with torch.no_grad():
        said = model(words).logits.argmax(-1)
    assert 0 < said.double().mean() < 1
    state = np.zeros(8, dtype=int)
    for place, letters in enumerate(words.T.numpy()):
        assert seen.machine.answers[state, letters].tolist() == said[:, place].tolist()
        state = seen.machine.following[state, letters]
