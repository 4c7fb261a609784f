"""Digits pixel by pixel: compared with the images of the file, walked without the code under test."""

from importlib.resources import files
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hybridlm.errors import UserError
from hybridlm.evaluation.memory import running
from hybridlm.evaluation.memory.registry import TASKS
from hybridlm.evaluation.memory.task import IGNORED

SHIPPED = ("mnist", "mnist_permuted", "mnist_blank", "mnist_permuted_blank")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def stored():
    with np.load(str(files("hybridlm.evaluation.memory") / "mnist_5k.npz")) as arrays:
        return arrays["x"].astype(int), arrays["y"].tolist()


def expected(images, quick):
    """Each image as a tuple of whole numbers: its pixels, or the sums of 2 x 2 of them, row by row."""
    if quick:
        images = images[:, 0::2, 0::2] + images[:, 0::2, 1::2] + images[:, 1::2, 0::2] + images[:, 1::2, 1::2]
    return [tuple(image.ravel().tolist()) for image in images]


def seen(batch, quick):
    """The rows of a batch in the same form."""
    assert batch.inputs.dtype == torch.float32
    assert 0.0 <= batch.inputs.min() <= batch.inputs.max() <= 1.0
    scaled = batch.inputs[:, :, 0].double() * 255 * (4 if quick else 1)
    assert (scaled - scaled.round()).abs().max() < 1e-3
    return [tuple(row) for row in scaled.round().int().tolist()]


@pytest.mark.parametrize("quick", [True, False])
def test_training_draws_images_of_the_first_part_with_their_class(quick):
    images, labels = stored()
    training = dict(zip(expected(images[:4000], quick), labels[:4000], strict=True))
    batch = TASKS["mnist"](quick).batch(300, seeded())
    assert batch.inputs.shape == (300, 196 if quick else 784, 1)
    assert [training[row] for row in seen(batch, quick)] == batch.targets[:, -1].tolist()
    assert (batch.targets[:, :-1] == IGNORED).all()
    assert len(set(seen(batch, quick))) > 270


@pytest.mark.parametrize("quick", [True, False])
def test_the_test_has_every_digit_of_the_other_part_once(quick):
    images, labels = stored()
    (test,) = TASKS["mnist"](quick).tests()
    assert (test.name, test.length, test.rows) == ("test", 196 if quick else 784, 1000)
    batches = [test.make(rows, seeded(rows)) for rows in (300, 299, 400, 1)]
    assert [row for batch in batches for row in seen(batch, quick)] == expected(images[4000:], quick)
    assert [label for batch in batches for label in batch.targets[:, -1].tolist()] == labels[4000:]
    again = test.make(2, seeded())
    assert seen(again, quick) == expected(images[4000:4002], quick), "a second measurement starts from the first one"


def test_a_measurement_in_parts_sees_every_digit_once(monkeypatch):
    """Through `running.measure`, with parts smaller than the test and chunks smaller than a sequence."""
    monkeypatch.setattr(running, "TOKENS_AT_ONCE", 2000)
    chunks = []

    class Always3(SimpleNamespace):
        def __call__(self, inputs, cache):
            chunks.append(inputs)
            return torch.eye(10)[3].expand(*inputs.shape[:2], 10)

    model = Always3(grows=False, device=torch.device("cpu"), eval=lambda: None, cache=object)
    (test,) = TASKS["mnist_blank"](True).tests()
    found = running.measure(model, test, 0)
    assert (found["asked"], found["wrong"], found["right"]) == (1000, 900, 100)
    assert sum(chunk.shape[0] * chunk.shape[1] for chunk in chunks) == 1000 * 446


def test_training_and_test_are_balanced_and_share_no_image():
    images, labels = stored()
    assert np.bincount(labels[:4000]).tolist() == [400] * 10
    assert np.bincount(labels[4000:]).tolist() == [100] * 10
    for quick in (True, False):
        assert not set(expected(images[:4000], quick)) & set(expected(images[4000:], quick))


@pytest.mark.parametrize("quick", [True, False])
def test_permuted_is_the_same_pixels_in_one_order(quick):
    plain = TASKS["mnist"](quick).batch(200, seeded())
    torch.manual_seed(5)
    permuted = TASKS["mnist_permuted"](quick).batch(200, seeded())
    torch.manual_seed(6)
    other_run = TASKS["mnist_permuted"](quick)
    assert permuted.inputs.equal(other_run.batch(200, seeded()).inputs)
    assert permuted.targets.equal(plain.targets)
    assert not permuted.inputs.equal(plain.inputs)
    columns = [sorted(zip(*seen(batch, quick), strict=True)) for batch in (plain, permuted)]
    assert columns[0] == columns[1], "one order for all rows"


def test_the_permuted_test_has_the_order_of_training():
    plain, permuted = TASKS["mnist"](True), TASKS["mnist_permuted"](True)
    both = [
        torch.cat([task.batch(100, seeded()).inputs, task.tests()[0].make(100, seeded()).inputs])[:, :, 0].T
        for task in (plain, permuted)
    ]
    assert sorted(both[0].tolist()) == sorted(both[1].tolist())


@pytest.mark.parametrize(("quick", "first"), [(True, [158, 9, 8, 109, 127]), (False, [158, 435, 6, 677, 295])])
def test_the_order_of_the_pixels_never_changes(quick, first):
    """Written down: results of different releases compare only as long as it stays."""
    assert TASKS["mnist_permuted"](quick).order.tolist()[:5] == first


@pytest.mark.parametrize("name", ["mnist", "mnist_permuted"])
@pytest.mark.parametrize(("quick", "zeros"), [(True, 250), (False, 1000)])
def test_blank_asks_behind_zeros(name, quick, zeros):
    plain, blank = (TASKS[full](quick).batch(20, seeded()) for full in (name, f"{name}_blank"))
    length = plain.inputs.shape[1]
    assert blank.inputs.shape == (20, length + zeros, 1)
    assert blank.inputs[:, :length].equal(plain.inputs)
    assert not blank.inputs[:, length:].any()
    assert blank.targets[:, -1].equal(plain.targets[:, -1])
    assert (blank.targets[:, :-1] == IGNORED).all()


@pytest.mark.parametrize("name", SHIPPED)
def test_the_seed_decides_the_batch(name):
    first, again, other = (TASKS[name](True).batch(4, seeded(seed)) for seed in (3, 3, 4))
    assert first.inputs.equal(again.inputs)
    assert first.targets.equal(again.targets)
    assert not first.inputs.equal(other.inputs)


def test_the_full_set_comes_through_datasets(monkeypatch):
    images, labels = stored()
    parts = {"train": slice(0, 60), "test": slice(60, 100)}
    loaded = []

    def load_dataset(name, split):
        assert name == "ylecun/mnist"
        loaded.append(split)
        pictures = [Image.fromarray(image) for image in images[parts[split]].astype(np.uint8)]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
        return datasets.Dataset.from_dict({"image": pictures, "label": labels[parts[split]]}, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = TASKS["mnist_full"](True)
    assert loaded == [], "making a task, as a list of them does, loads nothing"
    training = dict(zip(expected(images[:60], True), labels[:60], strict=True))
    for _ in range(2):
        batch = task.batch(50, seeded())
        assert [training[row] for row in seen(batch, True)] == batch.targets[:, -1].tolist()
    (test,) = task.tests()
    assert test.rows == 40
    assert seen(test.make(40, seeded()), True) == expected(images[60:100], True)
    assert loaded == ["train", "test"], "each part once"


@pytest.mark.parametrize("name", [name.replace("mnist", "mnist_full") for name in SHIPPED])
def test_without_a_network_the_full_set_says_what_to_do(name, monkeypatch):
    def load_dataset(name, split):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = TASKS[name](True)
    with pytest.raises(UserError, match=r"'ylecun/mnist' \(split 'train'\).*no route.*without 'full'"):
        task.batch(1, seeded())
    with pytest.raises(UserError, match="split 'test'"):
        task.tests()
