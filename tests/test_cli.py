"""The command: help that is enough, one message and exit code 2 for what a user can put right, results where it
says.
"""

import hashlib
import json
import shutil

import pytest
from launching import launch
from models import save_checkpoint

from hybridlm import HybridLMConfig, HybridLMForCausalLM, cli
from hybridlm.cli import build_parser, main
from hybridlm.data.tokenizer import train_tokenizer

COMMANDS = ("demo", "prepare", "pretrain", "generate", "read", "evaluate", "info", "memory-suite", "report")
COMMANDS += ("card", "export", "convert", "inspect", "bench-generation", "chat", "compare", "certify")
TEXT = "She was the youngest of the two daughters of a most affectionate, indulgent father. " * 40


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkpoint with random weights."""
    folder = tmp_path_factory.mktemp("made") / "model"
    return save_checkpoint(folder, train_tokenizer([TEXT], vocab_size=280), initializer_range=0.5)


@pytest.fixture
def work(tmp_path, monkeypatch, made):
    """An empty working folder with a checkpoint `model`, a text `book.txt` and a recipe `recipe.yaml`."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, tmp_path / "model")
    (tmp_path / "book.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(
        "data: {prepare: {sources: [{path: book.txt}], output: data, vocab_size: 280, "
        "validation: {by: position, share: 0.2}}, sequence_length: 16}\n"
        "model: {pattern: rglru bmru, hidden_size: 32, num_attention_heads: 4}\n"
        "training: {steps: 2, batch_size: 2}\n"
    )
    return tmp_path


def refused(capsys, *argv):
    """The one message with which a command ends in exit code 2."""
    assert main([str(part) for part in argv]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"hybridlm {argv[0]}: ")
    assert "Traceback" not in captured.err + captured.out
    return captured.err


def test_what_comes_several_times_may_stand_on_both_sides_of_an_option():
    given = build_parser().parse_args(["pretrain", "a=1", "--dry-run", "b=2", "--config", "x.yaml", "c=3"])
    assert (given.overrides, given.config, given.dry_run) == (["a=1", "b=2", "c=3"], "x.yaml", True)
    assert build_parser().parse_args(["prepare", "a", "--out", "o", "b", "--", "c"]).paths == ["a", "b", "c"]
    with pytest.raises(SystemExit):
        build_parser().parse_args(["info", "a", "--json", "b"])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_a_meaning_for_every_option_and_an_example(capsys, command):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    assert f"hybridlm {command}" in text.split("examples:")[1]
    parser = cli.build_parser()._subparsers._group_actions[0].choices[command]
    assert all(action.help for action in parser._actions)


def test_pretrain_help_explains_the_fields_of_a_recipe(capsys):
    with pytest.raises(SystemExit):
        main(["pretrain", "--help"])
    text = capsys.readouterr().out
    for name in ("data.prepare.sources", "optimizer.lr", "training.batch_size", "epsilon.zero", "run.resume"):
        assert name in text


def test_the_commands_are_listed(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith("hybridlm 0.1.0, torch ")


@pytest.mark.parametrize("argv", [[], ["fly"], ["generate"], ["evaluate", "m"], ["generate", "m", "--top-k", "x"]])
def test_what_cannot_be_parsed_ends_in_two(argv, capsys):
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_the_module_runs_as_a_process(work):
    done = launch(["-m", "hybridlm.cli", "info", "nowhere"])
    assert done.returncode == 2
    assert done.stderr.startswith("hybridlm info: checkpoint nowhere: there is no such folder")
    assert done.stderr.count("\n") == 1


def test_prepare_pretrain_evaluate_generate_info(work, capsys):
    assert main(["prepare", "--config", "recipe.yaml"]) == 0
    assert "Data folder: data" in capsys.readouterr().out
    assert main(["pretrain", "--config", "recipe.yaml", "run.name=short"]) == 0
    out = capsys.readouterr().out
    assert "Checkpoint: runs/short/final" in out
    assert main(["evaluate", "runs/short/final", "--text", "book.txt"]) == 0
    facts = json.loads((work / "runs/short/final/evaluation/book-16.json").read_text())
    assert f"{facts['bits_per_byte']:.4f}" in capsys.readouterr().out
    assert facts["context"] == 16  # the length of the training
    assert facts["n_bytes"] == len(TEXT)
    assert main(["generate", "runs/short/final", "She was", "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out.startswith("She was")
    assert main(["info", "runs/short/final", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pattern"] == "rglru bmru"


def test_prepare_from_options(work, capsys):
    (work / "lines.jsonl").write_text("".join(json.dumps({"body": f"{TEXT[:90]} {n}"}) + "\n" for n in range(30)))
    argv = ["prepare", "book.txt", "lines.jsonl", "--field", "body", "--documents", "line", "--out", "mine"]
    assert main([*argv, "--vocab-size", "280", "--validation-by", "position", "--validation-share", "0.2"]) == 0
    manifest = json.loads((work / "mine" / "manifest.json").read_text())
    assert manifest["vocab_size"] == 280
    assert "31 documents" in capsys.readouterr().out
    argv = ["prepare", "book.txt", "--out", "more", "--tokenizer", "mine/tokenizer"]
    assert main([*argv, "--validation-share", "0"]) == 0
    assert "Choose another --out, or give --overwrite to replace it." in refused(
        capsys, *argv, "--validation-by", "position", "--validation-share", "0.3"
    )
    assert main([*argv, "--validation-by", "position", "--validation-share", "0.3", "--overwrite"]) == 0


def test_evaluate_options(work, capsys):
    argv = ["evaluate", "model", "--text", "book.txt", "--context", "8", "--dtype", "bfloat16", "--carry-state"]
    assert main([*argv, "--out", "numbers.json"]) == 0
    facts = json.loads((work / "numbers.json").read_text())
    assert (facts["context"], facts["dtype"], facts["carry_state"]) == (8, "bfloat16", True)
    assert not (work / "model" / "evaluation").exists()
    assert "Written to numbers.json" in capsys.readouterr().out
    # Numbers of another dtype lie beside those of the checkpoint's own.
    assert main(["evaluate", "model", "--text", "book.txt", "--context", "8"]) == 0
    assert main(argv) == 0
    found = {path.name: json.loads(path.read_text())["dtype"] for path in (work / "model" / "evaluation").iterdir()}
    assert found == {"book-8.json": "float32", "book-8-carried-bfloat16.json": "bfloat16"}


@pytest.mark.parametrize("how", ["--context=8", "--lengths=8,16"])
def test_numbers_of_another_text_with_the_same_name_do_not_replace_the_first(work, how):
    (work / "other").mkdir()
    (work / "other" / "book.txt").write_text(TEXT[100:])
    texts = {name: hashlib.sha256((work / name).read_bytes()).hexdigest() for name in ("book.txt", "other/book.txt")}
    for text in [*texts, *texts]:  # a second time each replaces its own
        assert main(["evaluate", "model", "--text", text, how]) == 0
    found = [json.loads(path.read_text()) for path in (work / "model" / "evaluation").glob("book*.json")]
    names = [facts.get("texts", [facts.get("text")]) for facts in found]
    hashes = [facts.get("texts_sha256", [facts.get("text_sha256")]) for facts in found]
    assert sorted(zip(names, hashes, strict=True)) == sorted(([name], [digest]) for name, digest in texts.items())


def test_a_place_for_the_numbers_is_looked_at_first(work, capsys, monkeypatch):
    monkeypatch.setattr("hybridlm.evaluation.report.evaluate_checkpoint", lambda *_, **__: pytest.fail("measured"))
    evaluate = ("evaluate", "model", "--text", "book.txt")
    assert "the folder new does not exist" in refused(capsys, *evaluate, "--out", "new/x.json")
    assert "that is a folder" in refused(capsys, *evaluate, "--out", "model")
    for place in ("book.txt/x.json", "book.txt/new/x.json"):
        assert f"--out {place}: cannot be written (book.txt is a file)" in refused(capsys, *evaluate, "--out", place)
    assert "cannot be written" in refused(capsys, *evaluate, "--out", "/proc/x.json")
    assert "Give --out FILE.json" in refused(capsys, "evaluate", "owner/model", "--text", "book.txt")
    (work / "model" / "evaluation").symlink_to("/proc/nowhere")
    assert "cannot be written beside it" in refused(capsys, *evaluate)
    assert sorted(path.name for path in work.iterdir() if path.is_dir()) == ["model"]


def test_generate_is_a_function_of_its_seed(work, capsys):
    texts = []
    for seed in ("1", "1", "2"):
        assert main(["generate", "model", "She", "--max-new-tokens", "20", "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def bad_files(folder):
    (folder / "empty.txt").write_bytes(b"")
    (folder / "binary.txt").write_bytes(b"abc\x00\x01def")
    (folder / "latin.txt").write_bytes("café".encode("latin-1"))


@pytest.mark.parametrize(
    ("name", "says"), [("empty.txt", "empty"), ("binary.txt", "byte 3 is"), ("latin.txt", "byte 3 is")]
)
def test_files_that_are_no_text(work, capsys, name, says):
    bad_files(work)
    assert says in refused(capsys, "evaluate", "model", "--text", name)
    assert says in refused(capsys, "prepare", name, "--out", "new", "--vocab-size", "280")
    assert not list(work.glob("new*"))
    assert not (work / "model" / "evaluation").exists()


@pytest.mark.parametrize("command", [["generate"], ["info"], ["evaluate", "--text", "book.txt"]])
def test_a_missing_checkpoint(work, capsys, command):
    name, *rest = command
    assert "runs/none/final: there is no such folder" in refused(capsys, name, "runs/none/final", *rest)
    assert "did you mean 'model'" in refused(capsys, name, "modle", *rest)


def test_a_corrupted_shard(work, capsys):
    assert main(["prepare", "--config", "recipe.yaml"]) == 0
    shard = next((work / "data").glob("train-*.bin"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    capsys.readouterr()
    run = ("pretrain", "data.folder=data", "data.sequence_length=16", "training.steps=1", "training.batch_size=2")
    model = "model={pattern: rglru, hidden_size: 32, num_attention_heads: 4}"
    assert shard.name in refused(capsys, *run, model)
    assert not (work / "runs").exists()


def test_a_misspelt_recipe_names_every_problem(work, capsys):
    overrides = ("optimiser.lr=1", "training.batchsize=3", "training.steps=0")
    message = refused(capsys, "pretrain", "--config", "recipe.yaml", *overrides)
    assert "did you mean 'optimizer'" in message
    assert "did you mean 'batch_size'" in message
    assert "training.steps" in message
    assert not (work / "runs").exists()
    assert not (work / "data").exists()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.hidden_size=30", "num_attention_heads"),
        ("model.pattern=rglru bmur", "did you mean 'bmru'"),
        ("model.hiden_size=32", "did you mean 'hidden_size'"),
        ("data.sequence_length=0", "data.sequence_length"),
        ("model.vocab_size=5", "tokenizer"),
    ],
)
def test_an_impossible_model_or_length(work, capsys, override, says):
    assert says in refused(capsys, "pretrain", "--config", "recipe.yaml", override)
    assert not (work / "runs").exists()


@pytest.mark.parametrize("context", ["0", "-1"])
def test_a_context_without_a_token(work, capsys, context):
    assert f"context={context}" in refused(capsys, "evaluate", "model", "--text", "book.txt", f"--context={context}")


def test_token_ids_out_of_range(work, capsys):
    """A tokenizer with more tokens than the model has."""
    config = HybridLMConfig(pattern="rglru", vocab_size=270, hidden_size=32, num_attention_heads=4)
    HybridLMForCausalLM(config).save_pretrained(work / "model")
    capsys.readouterr()
    assert "280 tokens, the model 270" in refused(capsys, "generate", "model", "She")


def test_other_refusals(work, capsys):
    assert "temperature=-1.0" in refused(capsys, "generate", "model", "She", "--temperature", "-1")
    assert "did you mean 'float16'" in refused(capsys, "generate", "model", "She", "--dtype", "fload16")
    assert "--out" in refused(capsys, "prepare", "book.txt")
    assert "leave out PATH" in refused(capsys, "prepare", "book.txt", "--config", "recipe.yaml")
    assert "--field" in refused(capsys, "prepare", "book.txt", "--out", "x", "--field", "body")
    assert "nowhere.yaml" in refused(capsys, "pretrain", "--config", "nowhere.yaml")
    assert "vocab_size" in refused(capsys, "prepare", "book.txt", "--out", "x", "--vocab-size", "5")
    for out in ("", ".", "/"):
        assert "a folder with a name of its own" in refused(capsys, "prepare", "book.txt", "--out", out)
    for dry in ([], ["--dry-run"]):
        run = ["pretrain", "--config", "recipe.yaml", *dry]
        assert "a folder with a name of its own" in refused(capsys, *run, "data.prepare.output=.")
    assert "give one for each of the 1 sources" in refused(
        capsys, "prepare", "book.txt", "--out", "x", "--licenses", "MIT,CC0-1.0"
    )
    assert "weights of all sources are 0" in refused(capsys, "prepare", "book.txt", "--out", "x", "--weights", "0")
    assert "boook.txt" in refused(capsys, "prepare", "boook.txt", "--out", "x", "--vocab-size", "280")
    assert not (work / "x").exists()


def test_ctrl_c_is_one_line_and_130(monkeypatch, capsys):
    monkeypatch.setattr("hybridlm.evaluation.info.describe", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["info", "model"]) == 130
    assert capsys.readouterr().err == "hybridlm info: stopped by Ctrl-C.\n"


def test_a_bug_is_not_hidden(monkeypatch):
    def broken(_):
        raise ValueError("a bug")

    monkeypatch.setattr("hybridlm.evaluation.info.describe", broken)
    with pytest.raises(ValueError, match="a bug"):
        main(["info", "model"])


PIPED = """
import ctypes, gc, os
from hybridlm.cli import build_parser, main

read, write = os.pipe()
pid = os.fork()
if pid == 0:  # ends as a process of its own does, with what the interpreter makes of its buffers
    os.close(read)
    os.dup2(write, 1)
    code = main(["generate", "model", "She", "--max-new-tokens", "300"])
    gc.unfreeze()
    ctypes.pythonapi.Py_Exit(code)
os.close(write)
print(os.read(read, 1).decode())
os.close(read)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_pipe_without_a_reader_is_no_error(work):
    done = launch(["-c", PIPED])
    assert done.stdout in ("S\n0\n", "S\n141\n")  # the reader goes behind the last write, or before it
    assert done.stderr == ""


def test_the_other_processes_of_a_launcher_say_which_they_are(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert "process 1: " in refused(capsys, "pretrain", "--config", "nowhere.yaml")


@pytest.mark.parametrize("argv", ["info {}", "generate model --state {}", "evaluate model --text {}", "report {}"])
def test_names_that_the_system_refuses(work, capsys, argv):
    assert "File name too long" in refused(capsys, *argv.format("a" * 300).split())
    said = refused(capsys, *argv.format("~nobody-of-that-name/x").split())  # not the RuntimeError of `expanduser`
    assert "~nobody-of-that-name/x" in said
