"""Every task has its place, also those that no family knows."""

import random

from hybridlm.evaluation.memory.families import FAMILIES, MIXERS, PUBLISHED, by_family, family_of, mixer_order
from hybridlm.evaluation.memory.registry import TASKS

ORDERED = {
    "copy_first": ["copy_first_50", "copy_first_100", "copy_first_300", "copy_first_600"],
    "copy_first_symbol": ["copy_first_symbol_50", "copy_first_symbol_100"],
    "denoising": ["denoising", "denoising_late"],
    "flip_flop_lm": ["flip_flop"],
    "mnist": ["mnist", "mnist_permuted", "mnist_blank", "mnist_permuted_blank", "mnist_full", "mnist_full_blank"],
    "recall": ["selective_copying", "mqar"],
    "corridor": ["corridor", "corridor_two"],
    "text": ["text"],
    "formal": [
        *("parity", "modular_counting", "dyck1_depth", "dyck2_depth", "z2", "z16", "s3", "s4", "s5", "a5"),
        "flip_flop_dense",
    ],
    "a_new_one": ["a_new_one"],
    "zebra": ["zebra"],
}


def test_families_and_their_tasks_are_in_order_whatever_order_they_come_in():
    tasks = [task for each in ORDERED.values() for task in each]
    random.Random(0).shuffle(tasks)
    found = by_family([*tasks, *tasks])
    assert {family.name: names for family, names in found.items()} == ORDERED
    assert [family.name for family in found] == list(ORDERED)


def test_every_task_of_the_registry_has_a_family():
    assert [task for task in TASKS if family_of(task) not in FAMILIES] == []


def test_published_lengths_are_of_formal_tasks():
    assert {family_of(task).name for task in PUBLISHED} == {"formal"}


def test_mixers_are_in_order_and_others_behind():
    mixers = [*MIXERS, "another", "other"]
    assert sorted([*mixers[7:], *mixers[:7]], key=mixer_order) == mixers
