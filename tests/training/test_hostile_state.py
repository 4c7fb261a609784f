"""A checkpoint of a run whose files were exchanged by somebody who can also make checksums: none of it runs, none of it
leads out of the folder, and the run says what to do."""

import hashlib
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from failing import crash_after
from safetensors.torch import load_file

from hybridlm.errors import UserError
from hybridlm.training.checkpoints import CHECKSUMS, STATE, checkpoints, damage
from hybridlm.training.loop import pretrain

CANARY = "harm"


class Harm:
    """A pickle of it makes a folder as it is read."""

    def __reduce__(self):
        return os.mkdir, (CANARY,)


@pytest.fixture
def stopped(recipe, monkeypatch, tmp_path):
    """A run that crashed behind its checkpoint of step 2; nothing may have run at the end."""
    monkeypatch.chdir(tmp_path)
    config = recipe("training.steps=4", "checkpoint.every=2", "training.ema_decay=0.5")
    crash_after(3, config, monkeypatch)
    yield config, checkpoints(config.run.path)[-1]
    assert not Path(CANARY).exists()


def seal(folder):
    """Right checksums of whatever is there."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS]
    sums = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (folder / STATE / CHECKSUMS).write_text(json.dumps(sums))
    assert damage(folder) is None


def write_harm(path, kind):
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Harm(), protocol=2))  # of which torch does not warn
        return
    torch.save({"optimizer": {"state": {}, "param_groups": []}, "harm": Harm()}, path)
    assert any(b"mkdir" in file.read(name) for file in [zipfile.ZipFile(path)] for name in file.namelist())


@pytest.mark.parametrize("kind", ["pickle", "torch"])
@pytest.mark.parametrize("name", ["optimizer.pt", "ema.pt", "rng.pt"])
def test_a_pickle_in_place_of_training_state_does_not_run(stopped, name, kind):
    config, checkpoint = stopped
    write_harm(checkpoint / STATE / name, kind)
    seal(checkpoint)
    with pytest.raises(UserError, match=rf"{name} is damaged \(.*Remove this checkpoint folder"):
        pretrain(config)


def test_a_pickle_in_place_of_the_weights_does_not_run(stopped):
    config, checkpoint = stopped
    (checkpoint / "model.safetensors").unlink()
    write_harm(checkpoint / "pytorch_model.bin", "pickle")
    seal(checkpoint)
    with pytest.raises(UserError, match=r"its weights are in pytorch_model\.bin, a pickle"):
        pretrain(config)


def test_weights_outside_of_the_checkpoint(stopped, tmp_path):
    config, checkpoint = stopped
    names = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").rename(tmp_path / "outside.safetensors")
    where = os.path.relpath(tmp_path / "outside.safetensors", checkpoint)
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, where)}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    seal(checkpoint)
    with pytest.raises(UserError, match=r"must lie in a \.safetensors file inside the folder"):
        pretrain(config)


@pytest.mark.parametrize("name", ["../../../outside", "/etc/hostname"])
def test_checksums_lead_nowhere_else(stopped, tmp_path, name):
    (tmp_path / "outside").touch()
    _, checkpoint = stopped
    path = checkpoint / STATE / CHECKSUMS
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: "x"}))
    assert damage(checkpoint) == f"{STATE}/{CHECKSUMS} names {name!r}, no file of the folder"


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "3", '{"training_state/state.json": 3}'])
def test_checksums_that_are_none(stopped, text):
    _, checkpoint = stopped
    (checkpoint / STATE / CHECKSUMS).write_text(text)
    assert damage(checkpoint) is not None
