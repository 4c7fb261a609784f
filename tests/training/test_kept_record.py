"""A run folder whose checkpoints are not there: what was recorded in it is not lost."""

import shutil

import pytest

from hybridlm.errors import UserError
from hybridlm.training.loop import pretrain
from hybridlm.training.metrics import read_rows


def test_a_run_that_lost_its_checkpoints_keeps_its_record(recipe, capsys):
    """Its best model too: that of the later step, however often it starts anew."""
    settings = ("validation.every=2", "logging.samples={every: 2, max_new_tokens: 2}", "checkpoint.every=2")
    run = pretrain(recipe(*settings)).run_folder
    kept = {name: (run / name).read_bytes() for name in ("metrics.jsonl", "samples.jsonl", "best/model.safetensors")}

    def lose() -> None:
        for name in ("final", "checkpoints"):
            shutil.rmtree(run / name)
        capsys.readouterr()

    lose()
    with pytest.raises(UserError, match="There is no checkpoint in"):
        pretrain(recipe(*settings, "run.resume=must"))
    assert (run / "metrics.jsonl").read_bytes() == kept["metrics.jsonl"]
    short = recipe(*settings, "training.steps=2", "training.seed=5")
    pretrain(short)
    assert (
        f"There is no checkpoint in {run}: the run starts anew. Its record before, up to step 4, is kept as "
        "metrics.jsonl.old and its best model as best.old."
    ) in capsys.readouterr().out
    lose()
    pretrain(short)
    assert "up to step 2, is kept as metrics.jsonl.old2.\n" in capsys.readouterr().out
    assert {name: (run / f"{name}.old").read_bytes() for name in ("metrics.jsonl", "samples.jsonl")} == {
        name: kept[name] for name in ("metrics.jsonl", "samples.jsonl")
    }
    assert (run / "best.old" / "model.safetensors").read_bytes() == kept["best/model.safetensors"]
    assert [row["step"] for row in read_rows(run / "metrics.jsonl") if "lr" in row] == [1, 2]


def test_checkpoints_that_are_no_folder_are_refused_at_the_start(recipe, tmp_path, monkeypatch):
    config = recipe()
    pretrain(config)
    shutil.rmtree(config.run.path / "final")
    inside = config.run.path / "checkpoints"
    inside.rename(tmp_path / "disk")
    before = (config.run.path / "metrics.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("hybridlm.training.loop.open_data", lambda *_: pytest.fail("went on"))
        inside.symlink_to(tmp_path / "unmounted")
        with pytest.raises(UserError, match=r"checkpoints is a link to .*unmounted, which is not there\. Bring"):
            pretrain(config)
        inside.unlink()
        inside.write_text("x")
        with pytest.raises(UserError, match=r"checkpoints is no folder\. Bring"):
            pretrain(config)
    assert (config.run.path / "metrics.jsonl").read_bytes() == before
    inside.unlink()
    inside.symlink_to(tmp_path / "disk")
    assert pretrain(config).checkpoint.is_dir()
    assert (config.run.path / "metrics.jsonl").read_bytes() == before


def test_a_record_that_lost_rows_goes_on_and_says_so(recipe, interrupted, capsys):
    config = recipe("training.steps=6", "validation.every=2")
    metrics = config.run.path / "metrics.jsonl"
    interrupted(config, 5)
    lines = metrics.read_bytes().splitlines(keepends=True)
    assert "missing" not in capsys.readouterr().out
    metrics.write_bytes(b"".join(lines[:3]) + lines[3][:-9])  # step 1, 2, its validation, half of step 3
    pretrain(config)
    assert f"Rows 3 to 5 are missing from {metrics}; the run goes on without." in capsys.readouterr().out
    assert [row["step"] for row in read_rows(metrics) if "lr" in row] == [1, 2, 6]
