"""The smallest machine that answers alike."""

import numpy as np

from hybridlm.evaluation.certificate.machine import NOWHERE, Machine


def parity(twice: bool) -> Machine:
    """Of the ones so far; with every state there twice, or not."""
    if not twice:
        return Machine(np.array([[0, 1], [1, 0]]), np.array([[0, 1], [1, 0]]))
    following = np.array([[2, 3], [3, 0], [0, 1], [1, 2]])  # 0 and 2 even, 1 and 3 odd
    return Machine(following, following % 2)


def test_states_that_answer_alike_are_one():
    smallest = parity(twice=True).smallest()
    assert smallest.states == 2
    assert smallest.same_as(parity(twice=False))


def test_states_that_differ_only_after_a_while_stay_apart():
    # A chain of six: its end alone answers 1, so every state is told apart by how far the end is.
    following = np.array([[1], [2], [3], [4], [5], [5]])
    answers = np.array([[0], [0], [0], [0], [1], [1]])
    smallest = Machine(following, answers).smallest()
    assert smallest.states == 5
    assert smallest.following.ravel().tolist() == [1, 2, 3, 4, 4]
    assert smallest.answers.ravel().tolist() == [0, 0, 0, 0, 1]


def test_letters_that_never_come_tell_states_apart():
    following = np.array([[1, NOWHERE], [0, 0]])
    answers = np.array([[0, NOWHERE], [0, 0]])
    assert Machine(following, answers).smallest().states == 2


def test_states_that_no_word_reaches_are_left_out():
    following, answers = np.array([[0], [0]]), np.array([[0], [1]])
    assert Machine(following, answers).smallest().states == 1


def test_numbers_come_in_the_order_in_which_words_reach_the_states():
    swapped = Machine(np.array([[2, 1], [1, 1], [2, 0]]), np.array([[0, 1], [0, 0], [1, 2]]))
    assert swapped.smallest().following.tolist() == [[1, 2], [1, 0], [2, 2]]


def test_other_answers_are_another_machine():
    other = Machine(np.array([[0, 1], [1, 0]]), np.array([[0, 1], [1, 1]]))
    assert not other.same_as(parity(twice=False))


def test_table():
    machine = Machine(np.array([[0, 1], [1, NOWHERE]]), np.array([[0, 10], [1, NOWHERE]]))
    assert machine.table().splitlines() == [
        "         letter 0     1",
        "state 0       0/0  1/10",
        "state 1       1/1      ",
    ]
