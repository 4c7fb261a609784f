"""sessions.jsonl: a row a session, and which of them are in a checkpoint."""

import json

import hybridlm
from hybridlm.training.loop import pretrain
from hybridlm.training.sessions import SESSIONS, sessions


def test_a_run_notes_each_session(recipe, interrupted):
    config = recipe()
    interrupted(config, 2)
    pretrain(config)
    first, second = sessions(config.run.path)
    assert (first["step"], second["step"]) == (0, 2)
    assert second["processes"] == 1
    assert second["kind"] == "cpu"
    assert second["device"]
    assert second["hybridlm"] == hybridlm.__version__
    assert second["started"][:2] == "20"
    assert {"command", "commit", "cores", "threads", "torch", "transformers"} <= set(second)
    pretrain(config)  # finished: no session
    assert len(sessions(config.run.path)) == 2


def test_work_that_was_lost_is_in_no_checkpoint(tmp_path):
    steps = [0, 0, 100, 300, 200, 400]
    rows = [json.dumps({"step": step, "command": str(number)}) for number, step in enumerate(steps)]
    (tmp_path / SESSIONS).write_text("\n".join([*rows, '{"step": 9', "[]"]))
    assert len(sessions(tmp_path)) == 6
    assert [row["command"] for row in sessions(tmp_path, 500)] == ["1", "2", "4", "5"]
    assert [row["command"] for row in sessions(tmp_path, 400)] == ["1", "2", "4"]
    assert [row["command"] for row in sessions(tmp_path, 100)] == ["1"]
    assert sessions(tmp_path / "none", 5) == []
