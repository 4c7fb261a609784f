"""A command whose stdout or stderr is closed or full: an exit code that says how it went, and at most one message."""

import json
import os

import pytest
from launching import launch

RECIPE = """
data: {prepare: {sources: [{path: book.txt}], output: data, vocab_size: 280, validation: {by: position, share: 0.2}},
  sequence_length: 16}
model: {pattern: rglru bmru, hidden_size: 32, num_attention_heads: 4}
training: {steps: 2, batch_size: 2}
"""

FORKED = """
import atexit, ctypes, gc, json, os, sys
import hybridlm.training.loop, hybridlm.training.dryrun_text, hybridlm.evaluation.info, hybridlm.evaluation.generate
from hybridlm.cli import main

# whole: the interpreter itself ends it, which takes a second; else what that makes of its buffers is done here.
def ended(case, whole):
    stdout, stderr, argv = case
    pid = os.fork()
    if pid == 0:
        for number, name, place in ((1, "stdout", stdout), (2, "stderr", stderr)):
            if place is None:
                os.close(number)
                setattr(sys, name, None)
            else:
                os.dup2(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        code = main(argv)
        if whole:
            gc.unfreeze()
            ctypes.pythonapi.Py_Exit(code)
        atexit._run_exitfuncs()
        for stream in filter(None, (sys.stdout, sys.stderr)):
            try:
                stream.flush()
            except OSError:
                code = 120
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

codes, places = [], []
for number, case in enumerate(json.loads(sys.argv[1])):
    whole = case[:2] not in places
    places.append(case[:2])
    case[1] = case[1] and case[1].replace("N", str(number))
    codes.append(ended(case, whole))
with open("codes.json", "w") as file:
    json.dump(codes, file)
"""
FULL, NONE, ERROR = "/dev/full", None, "errorN.txt"


@pytest.mark.skipif(not os.path.exists(FULL), reason="needs Linux's /dev/full")
def test_no_output_is_no_traceback(tmp_path):
    (tmp_path / "book.txt").write_text("She was the youngest of the two daughters of a most affectionate father. " * 40)
    (tmp_path / "r.yaml").write_text(RECIPE)
    run = ["pretrain", "--config", "r.yaml"]
    model = "runs/r/final"
    cases = [  # stdout, stderr, command, exit code
        (FULL, ERROR, run, 0),
        (FULL, FULL, [*run, "run.name=full"], 0),
        (NONE, ERROR, [*run, "run.name=closed"], 0),
        (NONE, NONE, [*run, "run.name=both"], 0),
        (FULL, ERROR, run, 0),  # finished
        (FULL, ERROR, [*run, "--dry-run"], 2),
        (FULL, ERROR, ["prepare", "--config", "r.yaml"], 2),
        (
            FULL,
            ERROR,
            ["prepare", "book.txt", "--out", "fresh", "--vocab-size", "280", "--validation-by", "position"],
            2,
        ),
        (FULL, ERROR, ["generate", model, "She", "--max-new-tokens", "3"], 2),
        (FULL, ERROR, ["info", model, "--json"], 2),
        (FULL, FULL, ["info", model], 2),
        (NONE, ERROR, ["info", model], 0),
        (NONE, NONE, ["info", "nowhere"], 2),
        (FULL, FULL, ["info", "nowhere"], 2),
    ]
    given = json.dumps([case[:3] for case in cases])
    assert launch(["-c", FORKED, given], cwd=tmp_path, timeout=240).returncode == 0
    codes = json.loads((tmp_path / "codes.json").read_text())
    assert list(zip(codes, [case[:3] for case in cases], strict=True)) == [(case[3], case[:3]) for case in cases]
    for number, (_, stderr, argv, code) in enumerate(cases):
        if stderr == ERROR:
            said = (tmp_path / f"error{number}.txt").read_text()
            wanted = (
                f"hybridlm {argv[0]}: stdout cannot be written (No space left on device). Send the output elsewhere.\n"
            )
            assert said == (wanted if code == 2 else "")
    assert (tmp_path / "fresh" / "manifest.json").is_file()  # the work itself needs no output
    assert not (tmp_path / "1").exists()
