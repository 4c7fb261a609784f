"""Handwritten digits, one pixel a step.

5,000 images of MNIST travel with the package, in `mnist_5k.npz`: x (5000, 28, 28) uint8 and y (5000,), the ten classes
in turn, so that any stretch of it is balanced. The first 4,000 are trained on, the other 1,000 tested on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hybridlm.errors import UserError
from hybridlm.evaluation.memory.task import Batch, Budget, Task, Test, asked_at_end, random_integers

SHIPPED_TRAINING = 4000
"""Images of the shipped file that are trained on."""
FULL = "ylecun/mnist"
"""The full set on the Hugging Face Hub: 60,000 images to train on, 10,000 to test on."""
PERMUTATION_SEED = 28_28
"""Of the order of the pixels in the permuted form, in every run."""


class Digits(Task):
    """Sequential MNIST: the pixels of a digit row by row, each a number in [0, 1], and its class asked at the last
    step. Chance is 1/10.

    permuted: the pixels in another order, which is the same in all runs. blank: 1,000 zeros follow the pixels, and the
    class is asked at the last of them. full: all of MNIST instead of the 5,000 images that travel with the package.
    The quick form has the mean of every 2 x 2 pixels, so 196 instead of 784, and 250 zeros.

    Training draws images with replacement; the test sees each of the test images once, in the order of the file.

    Source: Le, Jaitly & Hinton, A simple way to initialize recurrent networks of rectified linear units, 2015 (arXiv
    1504.00941), for both orders; the zeros behind the pixels are as in Vecoven, Ernst & Drion, 2021 (arXiv 2006.05252).
    """

    symbols, inputs, outputs = False, 1, 10

    def __init__(self, quick: bool = False, permuted: bool = False, blank: bool = False, full: bool = False):
        super().__init__(quick)
        self.full = full
        self.pixels = 196 if quick else 784
        self.zeros = 0 if not blank else 250 if quick else 1000
        seed = torch.Generator().manual_seed(PERMUTATION_SEED)
        self.order = torch.randperm(self.pixels, generator=seed) if permuted else None
        # quick: about 2.4 million steps of the recurrence, with the zeros or without
        self.budget = Budget(2000, 50) if not quick else Budget(250, 20 if blank else 50)

    @cached_property
    def training(self) -> Images:
        return _downloaded("train") if self.full else _shipped(slice(None, SHIPPED_TRAINING))

    @cached_property
    def testing(self) -> Images:
        return _downloaded("test") if self.full else _shipped(slice(SHIPPED_TRAINING, None))

    def check(self) -> None:
        if self.full:
            _ = self.training, self.testing

    def make(self, images: Images, chosen: Tensor) -> Batch:
        pixels = images.x[chosen].float() / 255
        if self.quick:
            pixels = F.avg_pool2d(pixels, 2)
        sequence = pixels.flatten(1)
        if self.order is not None:
            sequence = sequence[:, self.order]
        return asked_at_end(F.pad(sequence, (0, self.zeros)).unsqueeze(-1), images.y[chosen])

    def batch(self, rows: int, generator: torch.Generator) -> Batch:
        return self.make(self.training, random_integers(0, len(self.training.y), (rows,), generator))

    def tests(self) -> list[Test]:
        return [Test("test", self.pixels + self.zeros, len(self.testing.y), _InOrder(self))]


class _InOrder:
    """Hands out the test images one after the other, whatever the generator; after the last one it starts again."""

    def __init__(self, task: Digits):
        self.task, self.next = task, 0

    def __call__(self, rows: int, generator: torch.Generator) -> Batch:
        images = self.task.testing
        chosen = torch.arange(self.next, self.next + rows) % len(images.y)
        self.next = (self.next + rows) % len(images.y)
        return self.task.make(images, chosen)


@dataclass(frozen=True)
class Images:
    """x (n, 28, 28) uint8, y (n,) int64."""

    x: Tensor
    y: Tensor


def _images(x: Any, y: Any) -> Images:
    return Images(torch.from_numpy(np.asarray(x, dtype=np.uint8)), torch.from_numpy(np.asarray(y, dtype=np.int64)))


def _shipped(part: slice) -> Images:
    with (files("hybridlm.evaluation.memory") / "mnist_5k.npz").open("rb") as file, np.load(file) as arrays:
        return _images(arrays["x"][part], arrays["y"][part])


def _downloaded(split: str) -> Images:
    """Raises UserError where the set is neither in the cache of `datasets` nor to be had."""
    try:
        import datasets  # slow to import, and few runs need it

        rows = datasets.load_dataset(FULL, split=split)
        return _images(np.stack([np.asarray(image) for image in rows["image"]]), rows["label"])
    except Exception as error:  # the library lets through whatever its parts raise
        raise UserError(
            f"task: the data set {FULL!r} (split {split!r}) cannot be loaded: {type(error).__name__}: {error}. Name "
            "the task without 'full', such as 'mnist', for the 5,000 images that come with the package, or repeat the "
            "command with a network."
        ) from error
