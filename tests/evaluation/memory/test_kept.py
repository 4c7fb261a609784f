"""Trained models of the suite as checkpoints."""

import json
import os
import signal
import stat
import time

import pytest
import torch
from transformers import AutoModelForTokenClassification

from hybridlm import HybridLMForTokenClassification
from hybridlm.cli import main
from hybridlm.evaluation.memory.certificates import read_certificates
from hybridlm.evaluation.memory.kept import as_classifier, folder_of
from hybridlm.evaluation.memory.model import MemoryModel
from hybridlm.evaluation.memory.recipe import Recipe
from hybridlm.evaluation.memory.registry import TASKS
from hybridlm.evaluation.memory.store import Store
from hybridlm.evaluation.weights import weights_digest

RUN = ["memory-suite", "--quick", "--tasks", "z2", "--mixers", "nfsm", "--seeds", "0", "--workers", "1"]
SMALL = ["--set", "steps=1", "--set", "width=8"]


def test_same_answers_as_the_model_that_was_trained():
    task = TASKS["s3"](True)
    torch.manual_seed(0)
    model = MemoryModel(task, Recipe(width=16).config("lru bmru", task.inputs)).eval()
    letters = torch.randint(0, task.inputs, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(as_classifier(model)(letters).logits, model(letters), rtol=0, atol=0)


def test_kept_beside_the_records(tmp_path):
    assert main([*RUN, *SMALL, "--keep", "--out", str(tmp_path)]) == 0
    (record,) = Store(tmp_path).records()
    folder = folder_of(tmp_path, record)
    assert folder.name == "z2-quick-nfsm-steps=1-width=8-seed0"
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]
    assert json.loads((folder / "memory_suite.json").read_text()) == record
    assert record["kept"]
    assert "--keep" in (tmp_path / "memory_suite.md").read_text()
    model = AutoModelForTokenClassification.from_pretrained(folder)
    assert (model.config.vocab_size, model.config.num_labels) == (2, 2)
    (tmp_path / "certificates").mkdir()
    assert main(["certify", str(folder), "--out", str(tmp_path / "certificates" / "one.json")]) == 0
    [facts] = read_certificates(tmp_path)
    assert facts["run"] == {name: record[name] for name in ("task", "form", "mixer", "seed", "changed")}
    assert facts["weights"] == weights_digest(folder)


def test_run_without_its_model_is_done_again(tmp_path, capsys):
    assert main([*RUN, *SMALL, "--out", str(tmp_path)]) == 0
    assert not (tmp_path / "models").exists()
    assert "--keep" not in (tmp_path / "memory_suite.md").read_text()
    assert main([*RUN, *SMALL, "--out", str(tmp_path), "--keep"]) == 0
    (record,) = Store(tmp_path).records()
    capsys.readouterr()
    assert main([*RUN, *SMALL, "--out", str(tmp_path), "--keep"]) == 0
    assert "1 of 1 runs are in" in capsys.readouterr().out
    assert Store(tmp_path).records() == [record]


def test_model_of_other_settings_is_made_again(tmp_path, capsys):
    assert main([*RUN, *SMALL, "--keep", "--out", str(tmp_path)]) == 0
    (record,) = Store(tmp_path).records()
    path = folder_of(tmp_path, record) / "memory_suite.json"
    path.write_text(json.dumps({**record, "settings": {**record["settings"], "lr": 1.0}}))
    capsys.readouterr()
    assert main([*RUN, *SMALL, "--keep", "--out", str(tmp_path)]) == 0
    assert "[1/1" in capsys.readouterr().out
    assert json.loads(path.read_text())["settings"]["lr"] == 3e-3


def test_place_that_cannot_hold_models_is_refused_before_the_first_run(tmp_path, capsys):
    (tmp_path / "models").write_text("")
    assert main([*RUN, *SMALL, "--keep", "--out", str(tmp_path)]) == 2
    assert "cannot be written to" in capsys.readouterr().err
    assert not Store(tmp_path).records()


def test_what_a_dead_writer_left_is_removed(tmp_path):
    dead = "999999999"
    models = tmp_path / "models"
    (models / f".s3-quick-bmru-seed0.partial-{dead}").mkdir(parents=True)
    (models / f".s3-quick-lru-seed0.old-{dead}").mkdir()
    (models / f".s3-quick-lru-seed1.partial-{os.getppid()}").mkdir()
    assert main([*RUN, *SMALL, "--keep", "--out", str(tmp_path)]) == 0
    assert {entry.name for entry in models.iterdir()} == {
        "z2-quick-nfsm-steps=1-width=8-seed0",
        "s3-quick-lru-seed0",  # it was moved aside for one that never came
        f".s3-quick-lru-seed1.partial-{os.getppid()}",  # its writer lives
    }


def test_sigterm_while_a_model_is_written_leaves_nothing_of_it(tmp_path, monkeypatch, capsys):
    def ended(self, folder):
        (folder / "config.json").write_text("{}")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr(HybridLMForTokenClassification, "save_pretrained", ended)
    with pytest.raises(SystemExit) as error:
        main([*RUN, *SMALL, "--keep", "--out", str(tmp_path)])
    assert error.value.code == 143
    assert capsys.readouterr().out.endswith("the same command goes on from there.\n")
    assert not list((tmp_path / "models").iterdir())
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_files_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        assert main([*RUN, *SMALL, "--keep", "--out", str(tmp_path)]) == 0
    finally:
        os.umask(before)
    (folder,) = (tmp_path / "models").iterdir()
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o640}


def test_several_workers(tmp_path):
    words = ["memory-suite", "--quick", "--tasks", "z2,s3", "--mixers", "nfsm", "--seeds", "0", "--workers", "2"]
    assert main([*words, *SMALL, "--keep", "--out", str(tmp_path)]) == 0
    assert all((folder_of(tmp_path, record) / "config.json").is_file() for record in Store(tmp_path).records())
    assert len(list((tmp_path / "models").iterdir())) == 2


def test_long_names_end_in_a_hash(tmp_path):
    changed = {f"field_{i}": i for i in range(30)}
    record = {"task": "s3", "form": "quick", "mixer": "bmru", "changed": changed, "seed": 2}
    one, other = folder_of(tmp_path, record), folder_of(tmp_path, {**record, "seed": 3})
    assert len(one.name) < 200
    assert one != other
    one.mkdir(parents=True)


def test_models_of_values_are_refused_before_the_first_run(tmp_path, capsys):
    assert main(["memory-suite", "--quick", "--tasks", "z2,denoising", "--keep", "--out", str(tmp_path / "new")]) == 2
    assert "keep: the inputs of denoising are values" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["lru bmru", "rglru+bmru"])
def test_names_of_folders(tmp_path, name):
    record = {"task": "s3", "form": "standard", "mixer": name, "changed": {"lr": 0.01}, "seed": 2}
    assert folder_of(tmp_path, record).name == f"s3-standard-{name.replace(' ', '_')}-lr=0.01-seed2"
