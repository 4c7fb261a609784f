"""The model card: every number is that of a file, what is missing is said, and nobody's own card is replaced."""

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from memory_records import errors, record
from models import make_model

import hybridlm
from hybridlm.cli import main
from hybridlm.data import TokenShards
from hybridlm.errors import UserError
from hybridlm.evaluation.info import describe
from hybridlm.evaluation.memory.store import Store
from hybridlm.evaluation.origin import CONVERTED
from hybridlm.evaluation.report import evaluate_checkpoint, write_json
from hybridlm.files import sha256
from hybridlm.release import card
from hybridlm.release.model_card import contents as contents_module
from hybridlm.release.model_card import training as training_module
from hybridlm.release.model_card import write as write_module
from hybridlm.release.model_card.contents import CardOptions
from hybridlm.release.model_card.write import write_card
from hybridlm.training.config import load_config
from hybridlm.training.loop import pretrain
from hybridlm.training.metrics import read_rows
from hybridlm.training.sessions import sessions

TEXT = "She was the youngest of the two daughters of a most affectionate, indulgent father. " * 200
RECIPE = """
model: {pattern: (rglru bmru)*2, hidden_size: 16, num_attention_heads: 2}
data:
  prepare:
    sources: [{path: book.txt, license: CC0-1.0}, {path: more.txt, weight: 2}]
    output: data
    vocab_size: 280
    validation: {by: position, share: 0.1}
  sequence_length: 16
training: {steps: 6, batch_size: 4, ema_decay: 0.5}
epsilon: {zero: 0.8}
checkpoint: {every: 2, keep: 5}
validation: {every: 2}
run: {name: small, folder: runs}
"""


@pytest.fixture(scope="module", autouse=True)
def described_once():
    """`describe` sends a token through a model on no device, which takes longer than a card: once for each config."""
    known = {}

    def described(folder):
        config = (Path(folder) / "config.json").read_bytes()
        if config not in known:
            known[config] = describe(folder)
        return copy.deepcopy(known[config])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contents_module, "describe", described)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a run in runs/small, its data, and an evaluation. Tests must not write into it."""
    folder = tmp_path_factory.mktemp("card")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("book.txt").write_text(TEXT)
        Path("more.txt").write_text(TEXT[:2000].upper())
        Path("recipe.yaml").write_text(RECIPE)
        result = pretrain(load_config("recipe.yaml", []))
        facts = evaluate_checkpoint(result.checkpoint, "book.txt", context=16, carry_state=True)
        write_json(result.checkpoint / "evaluation" / "book-16-carried.json", facts)
    return folder


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    """runs/small in the working folder, a copy."""
    shutil.copytree(finished, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return Path("runs/small")


@pytest.fixture
def no_picture(monkeypatch):
    """Drawing takes longer than all else."""
    monkeypatch.setattr(write_module, "loss_and_validation", lambda _: None)


def made(checkpoint, out=None, overwrite=False, **options):
    """The text of the card, and the lines that were said."""
    said = []
    path = write_card(checkpoint, out, options=CardOptions(**options), overwrite=overwrite, log=said.append)
    return path.read_text(encoding="utf-8"), said


def row(text, name):
    """The cell beside a name in one of the tables."""
    (found,) = re.findall(rf"^\| {re.escape(name)} \| (.*) \|$", text, flags=re.MULTILINE)
    return found


def section(text, title):
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def test_every_number_is_that_of_a_file(run):
    text, said = made(run / "final")
    assert said == []
    rows = read_rows(run / "metrics.jsonl")
    state = json.loads((run / "final/training_state/state.json").read_text())
    shards = TokenShards("data", "train", [1.0, 2.0])
    sizes = [sum(shards.length(i) for i in range(*shards.source_edges[n : n + 2])) for n in (0, 1)]
    epochs = 6 * 4 * 16 / (sizes[0] + 2 * sizes[1])
    assert row(text, "tokens read") == f"384, {epochs:.2f} epochs; start and end symbols included"
    assert row(text, "steps") == "6 of 6"
    assert row(text, "batch") == "4 sequences of 16 tokens"
    assert row(text, "precision") == "fp32"
    assert f"| `book.txt` | CC0-1.0 | 1 | 1 | {sizes[0]:,} |" in text
    assert f"| `more.txt` | not stated | 2 | 1 | {sizes[1]:,} |" in text
    assert state["data_fingerprint"] in text
    model = hybridlm.HybridLMForCausalLM.from_pretrained(run / "final")
    assert row(text, "parameters").startswith(f"{model.num_parameters():,} (")
    for each in rows:
        if "bits_per_byte" in each:
            figures = " | ".join(f"{each[name]:.4f}" for name in ("bits_per_byte", "bits_per_byte_ema", "loss"))
            assert f"| {each['step']} | {figures} |" in section(text, "Training")
    (session,) = sessions(run)
    assert session["device"] in row(text, "hardware")
    assert f"torch {session['torch']}" in row(text, "software")
    assert ("`" + session["commit"] in row(text, "commit of hybridlm")) if session["commit"] else "commit" not in text
    assert (session["command"] or "The command is not on record.") in text  # None beside other tests: no command line
    assert Path("runs/small/config.yaml").read_text().strip() in text
    measured = json.loads((run / "final/evaluation/book-16-carried.json").read_text())
    assert (
        f"| `book.txt` | bits per byte | {measured['bits_per_byte']:.4f} | 16, state carried on | "
        f"behind `<\\|endoftext\\|>`; end symbol not counted | {measured['n_tokens']:,} tokens, "
        f"{measured['n_bytes']:,} bytes (SHA-256 {sha256('book.txt')[:8]}…) | float32 on cpu |"
    ) in text
    command = "hybridlm evaluate runs/small/final --text book.txt --context 16 --carry-state --dtype float32"
    assert command in section(text, "Evaluation")
    assert "![training loss and validation](README_curves.png)" in text
    assert (run / "final" / card.PICTURE).read_bytes().startswith(b"\x89PNG")
    assert "None" not in text.replace("'None'", "")


def test_the_metadata_are_the_hubs(run, no_picture):
    write_card(run / "final", options=CardOptions(name="me/great", license="mit", language=["en", "fr"]), log=print)
    found = ModelCard.load(run / "final" / "README.md").data
    assert (found.library_name, found.pipeline_tag) == ("transformers", "text-generation")
    assert found.tags == ["hybridlm", "rglru", "bmru"]
    assert (found.license, found.language, found.model_name) == ("mit", ["en", "fr"], "great")
    last = [each for each in read_rows(run / "metrics.jsonl") if "bits_per_byte" in each][-1]
    facts = json.loads((run / "final/evaluation/book-16-carried.json").read_text())
    results = {each.dataset_name: each for each in found.eval_results}
    assert set(results) == {"the validation split of its data", "book.txt"}
    assert results["the validation split of its data"].metric_value == round(last["bits_per_byte"], 6)
    assert results["book.txt"].metric_value == round(facts["bits_per_byte"], 6)
    setting = {"context": 16, "carry_state": True, "dtype": "float32", "text_sha256": sha256("book.txt")}
    assert results["book.txt"].metric_args == setting
    recipe = run / "config.yaml"
    recipe.write_text(recipe.read_text().replace("folder: runs", "folder: runs/group"))
    assert "\n# group/small, best\n" in made(run / "best")[0]
    plain = ModelCard(made(run / "best")[0]).data
    assert (plain.license, plain.language) == (None, None)


def test_a_checkpoint_knows_nothing_of_later_steps(run, no_picture):
    text, _ = made(run / "checkpoints/step-00000002")
    assert row(text, "steps") == "2 of 6"
    assert row(text, "tokens read").startswith("128,")
    rows = {each["step"]: each for each in read_rows(run / "metrics.jsonl") if "bits_per_byte" in each}
    assert f"{rows[2]['bits_per_byte']:.4f}" in section(text, "Evaluation")
    assert [line for line in text.splitlines() if re.match(r"\| [46] \| \d", line)] == []
    assert f"{rows[6]['bits_per_byte']:.4f}" not in text
    assert "It is the model of step 2 of 6" in text
    assert "epsilon was" in section(text, "Limits")
    assert "# small, step-00000002" in text


def test_sessions_on_several_machines_are_told_apart(run, no_picture):
    (first,) = sessions(run)
    then = {
        "step": 4,
        "command": "python scripts/pretrain.py x",
        "processes": 2,
        "kind": "cuda",
        "device": "NVIDIA H200",
    }
    after = first | {"step": 6, "command": "never"}  # began where the checkpoint ends
    rows = [first | {"commit": "abc+", "command": "hybridlm pretrain x"}, first | then | {"commit": "def"}, after]
    (run / "sessions.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    text, _ = made(run / "final")
    assert row(text, "hardware").endswith(" 1 thread; then 2 × NVIDIA H200")
    assert row(text, "commit of hybridlm") == "`abc+`, with changes that are not in it; then `def`"
    assert "```\nhybridlm pretrain x\npython scripts/pretrain.py x\n```" in text
    assert "behind a launcher such as `torchrun`" in text
    text, _ = made(run / "checkpoints/step-00000004")
    assert "H200" not in text
    assert "launcher" not in text


def test_averaged_weights_have_their_own_validation(run, no_picture):
    last = [each for each in read_rows(run / "metrics.jsonl") if "bits_per_byte" in each][-1]
    shutil.copytree(run / "final-ema", run / "mine")
    assert f"bits per byte | {last['bits_per_byte_ema']:.4f} |" in section(made(run / "mine")[0], "Evaluation")
    text, _ = made(run / "final-ema")
    assert f"bits per byte | {last['bits_per_byte_ema']:.4f} |" in section(text, "Evaluation")
    assert last["bits_per_byte_ema"] != last["bits_per_byte"]


def test_data_that_are_gone_have_no_sizes(run, no_picture):
    shutil.rmtree("data")
    text, said = made(run / "final")
    assert "| `book.txt` | CC0-1.0 | 1 |\n" in text
    assert "sizes are not known" in text
    assert row(text, "tokens read") == "384; start and end symbols included"
    assert any(line.startswith("No sizes of the data: ") for line in said)
    made_anew = RECIPE.replace("vocab_size: 280", "vocab_size: 270")
    Path("other.yaml").write_text(made_anew)
    assert main(["prepare", "--config", "other.yaml"]) == 0
    text, said = made(run / "final")
    assert "sizes are not known" in text
    assert "another than the one that this checkpoint was trained on" in said[0]


def test_without_a_run_the_card_is_shorter(run, no_picture, tmp_path):
    shutil.copytree(run / "final", "lone/deep/model")
    text, said = made("lone/deep/model")
    assert row(text, "steps") == "6 of 6"
    assert "The command is not on record." in text
    assert "What it was trained on is not on record here" in text
    assert [Path(line.partition(" is not there")[0]).name for line in said] == ["metrics.jsonl", "config.yaml"]
    shutil.rmtree("lone/deep/model/training_state")
    with pytest.raises(UserError, match=r"it says how the model was trained, which is not known from the files here"):
        made("lone/deep/model")
    text, said = made("lone/deep/model", overwrite=True)
    assert said == []
    assert made("lone/deep/model")[0] == text
    assert section(text, "Training").strip() == "Not known: the checkpoint does not lie in the folder of a run."
    assert "`book.txt`" in section(text, "Evaluation")
    make_model("lru").save_pretrained("bare")
    text, _ = made("bare")
    assert "AutoTokenizer" not in text
    assert "Patents" not in text
    assert "Not measured." in section(text, "Evaluation")
    assert "model-index" not in text


def test_the_record_of_another_run_is_left_out(run, no_picture):
    shutil.copytree(run, "runs/other")
    rows = [each | {"tokens": 2 * each.get("tokens", 0)} for each in read_rows(run / "metrics.jsonl")]
    Path("runs/other/metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    recipe = Path("runs/other/config.yaml")
    recipe.write_text(recipe.read_text().replace("lr: 0.002", "lr: 0.003"))
    text, said = made("runs/other/final")
    assert "has no row of step 6 with 384 tokens" in said[0]
    assert "of another run (optimizer.lr differ)" in said[1]
    assert "The command is not on record." in text
    assert "validation split" not in text


def test_numbers_of_other_weights_are_left_out(run, no_picture):
    """Weights of the same sizes that were saved over those of the run, as a fine-tuning does: nothing that the run or
    an evaluation said holds of them."""
    final = run / "final"
    before, _ = made(final)
    model = hybridlm.HybridLMForCausalLM.from_pretrained(final)
    model.model.norm.weight.data += 1
    model.save_pretrained(final)
    text, said = made(final)
    assert "other weights than its run wrote" in said[0]
    assert "is of other weights, which lay here before: it is left out" in said[1]
    for title in ("Data", "Training"):
        assert "Not known: the weights are not those that the run wrote." in section(text, title)
    assert "Not measured." in section(text, "Evaluation")
    assert "model-index" not in text
    facts = evaluate_checkpoint(final, "book.txt", context=16)
    write_json(final / "evaluation" / "book-16.json", facts)
    assert f"{facts['bits_per_byte']:.4f}" in section(made(final)[0], "Evaluation")
    shutil.copy(run / "final-ema" / "model.safetensors", final)
    (final / "training_state" / "checksums.json").unlink()
    assert "other weights than its run wrote" in made(final)[1][0]
    assert "Not known" not in before


@pytest.mark.parametrize(
    ("began", "cached", "base"),
    [
        ("owner/model", "a file", "owner/model"),
        ("owner/model", None, None),  # a folder that is gone reads the same
        ("../base", "a file", None),
        ("~/base", "a file", None),
        ("runs/base/final", "a file", None),
    ],
)
def test_a_base_model_is_one_of_the_hub(run, no_picture, monkeypatch, began, cached, base):
    monkeypatch.setattr(training_module, "try_to_load_from_cache", lambda *_: cached)
    path = run / "final/training_state/state.json"
    state = json.loads(path.read_text())
    state["settings"]["training.init_from"] = began
    path.write_text(json.dumps(state))
    text, _ = made(run / "final")
    assert ModelCard(text).data.base_model == base
    assert f"The run began with the weights of `{began}`: what those were trained on is not" in section(text, "Data")


def test_a_converted_model_names_its_source(run, no_picture):
    make_model("mamba2").save_pretrained("ours")
    for source, on_hub, named in (("theirs", False, "`theirs`"), ("o/m", True, "[`o/m`](https://huggingface.co/o/m)")):
        Path("ours", CONVERTED).write_text(json.dumps({"source": source, "on_hub": on_hub}))
        text, _ = made("ours")
        assert ModelCard(text).data.base_model == (source if on_hub else None)
        for title in ("Data", "Training"):
            assert f"Converted by `hybridlm convert` from {named}: what that was" in section(text, title)
        assert f"they are those of `{source}`, under its licence" in section(text, "Rights")


def test_a_data_set_in_a_folder_is_none_of_the_hub(run, no_picture):
    """Also when the folder is gone, which the manifest remembers."""
    manifest, recipe = Path("data/manifest.json"), run / "config.yaml"
    recipe.write_text(
        recipe.read_text().replace("path: book.txt", "dataset: owner/set").replace("dataset: null", "", 1)
    )
    said = json.loads(manifest.read_text())
    for kind, name in (
        ("dataset", "[`owner/set`](https://huggingface.co/datasets/owner/set)"),
        ("saved", "`owner/set`"),
    ):
        said["sources"][0]["kind"] = kind
        manifest.write_text(json.dumps(said))
        text, _ = made(run / "final")
        assert f"| {name} | CC0-1.0 | 1 |" in section(text, "Data")
        assert ModelCard(text).data.datasets == (["owner/set"] if kind == "dataset" else None)


def test_a_run_that_was_not_validated(run, no_picture):
    path = run / "metrics.jsonl"
    rows = [each for each in read_rows(path) if "bits_per_byte" not in each]
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    text, _ = made(run / "final")
    assert "The run was not validated, and the picture of its losses was not drawn." in section(text, "Training")
    assert "validation split" not in section(text, "Evaluation")


def test_what_cannot_be_read_is_said_in_a_line(run, no_picture):
    """Files that somebody else wrote, or a disk damaged."""
    final, manifest = run / "final", Path("data/manifest.json")
    deep = "[" * 100_000
    (final / "evaluation/deep.json").write_text(deep)
    facts = json.loads((final / "evaluation/book-16-carried.json").read_text())
    for name, value in (("nan", "NaN"), ("large", "1" + "0" * 400)):
        (final / f"evaluation/{name}.json").write_text(json.dumps(facts | {"bits_per_byte": 9}).replace("9", value, 1))
    (run / "sessions.jsonl").write_text('{"step": 0, "processes": "x", "device": {}, "commit": 3}\n')
    said = json.loads(manifest.read_text())
    del said["sources"][0]["train"]
    manifest.write_text(json.dumps(said))
    text, notes = made(final)
    left_out = [Path(line.split(" ")[0]).stem for line in notes if "left out" in line]
    assert left_out == ["deep", "large", "nan"]
    assert "its manifest.json is damaged (KeyError: 'train')" in notes[-1]
    assert "sizes are not known" in text
    state = json.loads((final / "training_state/state.json").read_text())
    for name, value in (("step", "6"), ("seconds", None), ("settings", [])):
        (final / "training_state/state.json").write_text(json.dumps(state | {name: value}))
        with pytest.raises(UserError, match=r"its training_state/state.json is damaged"):
            made(final)


def test_a_torn_line_is_left_out_and_a_damaged_file_named(run, no_picture):
    whole, _ = made(run / "final")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    assert made(run / "final")[0] == whole
    (run / "final/training_state/state.json").write_text("{")
    with pytest.raises(UserError, match=r"its training_state/state.json is damaged"):
        made(run / "final")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([lines[0], "{half", *lines[2:]]))
    with pytest.raises(UserError, match=r"metrics.jsonl:2 is no JSON object"):
        made(run / "best")
    assert (run / "final" / "README.md").read_text() == whole


def measured_task(folder, name="ask", limit=None, **changed):
    """An evaluation on a task, as `hybridlm evaluate --tasks` leaves it."""
    facts = json.loads((folder / "evaluation/book-16-carried.json").read_text())
    metrics = {"acc": {"value": 0.25, "stderr": 0.01, "higher_is_better": True}}
    task = {"metrics": metrics, "examples": 40, "num_fewshot": 3, "version": 1}
    task["dataset"] = {"path": "someone/questions", "name": "main", "split": "test"}
    facts |= {"tasks": {name: task}, "limit": limit, "truncated": 2, "include_path": None} | changed
    (folder / "evaluation" / f"tasks-{name}-{limit}.json").write_text(json.dumps(facts))


def test_tasks_and_files_that_say_nothing(run, no_picture):
    final = run / "final"
    measured_task(final)
    measured_task(final, "tried", limit=5)
    measured_task(final, "theirs", parameters=7)
    (final / "evaluation/broken.json").write_text('{"text": 1, "bits_per_byte": ')
    (final / "evaluation/half.json").write_text('{"text": "a", "bits_per_byte": 1.0}')
    (final / "evaluation/generation.json").write_text('{"rows": []}')
    text, said = made(final)
    assert (
        "| `ask, 3-shot` | acc | 0.2500 ± 0.0100 | 16, 2 prompts cut | behind `<\\|endoftext\\|>`; end symbol not "
        "counted | 40 examples | float32 on cpu |"
    ) in text
    assert "the first 5 only: no result to report; 40 examples" in text
    assert "--tasks ask --context 16 --num-fewshot 3 --dtype float32" in text
    assert "--tasks tried --context 16 --num-fewshot 3 --limit 5 --dtype float32" in text
    assert "theirs" not in text
    (result,) = [each for each in ModelCard(text).data.eval_results if each.metric_type == "acc"]
    assert (result.dataset_type, result.dataset_config, result.dataset_split) == ("someone/questions", "main", "test")
    assert (result.metric_name, result.metric_value) == ("ask acc", 0.25)
    left_out = [Path(line.split(" ")[0]).name for line in said if "left out" in line]
    assert sorted(left_out) == ["broken.json", "generation.json", "half.json", "tasks-theirs-None.json"]
    assert "Not in .eval_results/hybridlm.yaml: ask/acc (someone/questions)" in said[-1]


def test_results_of_benchmarks_are_those_on_record(run, no_picture):
    final, results = run / "final", run / "final" / ".eval_results" / "hybridlm.yaml"
    measured_task(final)
    measured_task(final, "tried", limit=5)
    _, said = made(final, benchmarks=["ask/acc=someone/questions:main"])
    assert said == []
    (entry,) = parse_eval_result_entries(yaml.safe_load(results.read_text()))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("someone/questions", "main", 0.25)
    assert entry.notes == "lm-evaluation-harness ask, acc, 3-shot, context 16, float32 on cpu"
    made(final, benchmarks=["ask/acc=someone/questions:main:percent"])
    assert yaml.safe_load(results.read_text())[0]["value"] == 25.0
    for words, says in (
        ("ask/acc", "must be TASK/METRIC=DATASET:TASK_ID"),
        ("ask/acc=questions:main", "must be TASK/METRIC=DATASET:TASK_ID"),
        ("ask/ac=someone/questions:main", r"ask/ac is no task and metric on record; did you mean 'ask/acc'"),
        ("tried/acc=someone/questions:main", "there are ask/acc. "),
        ("book.txt/bits per byte=someone/questions:main", "is no task and metric on record"),
    ):
        with pytest.raises(UserError, match=says):
            made(final, benchmarks=[words])
    with pytest.raises(UserError, match="is given twice"):
        made(final, benchmarks=["ask/acc=someone/questions:main"] * 2)
    made(final)
    assert not results.exists()  # of an earlier card
    results.write_bytes(b"- mine \xff")
    made(final)
    with pytest.raises(UserError, match=r"hybridlm.yaml: somebody wrote it. Replace it with --overwrite"):
        made(final, benchmarks=["ask/acc=someone/questions:main"])
    assert results.read_bytes() == b"- mine \xff"
    made(final, benchmarks=["ask/acc=someone/questions:main"], overwrite=True)
    made(run / "best", final / "another.md")  # beside them, and not of them
    assert parse_eval_result_entries(yaml.safe_load(results.read_text()))


def test_the_memory_row_is_of_the_mixers_and_says_so(run, no_picture, tmp_path):
    store = Store(tmp_path / "records")
    store.prepare()
    for mixer in ("rglru bmru", "bmru", "gru", "lru bmru"):
        store.add(record([errors("1x", 51, 10), errors("10x", 501, 125)], "copy_first_symbol_50", mixer))
        store.add(record([errors("1x", 51, 10)], "copy_first_symbol_50", mixer, seed=1, changed={"lr": 0.1}))
    text, said = made(run / "final", memory=store.folder)
    found = section(text, "Memory suite")
    assert said == []
    assert "**Not this checkpoint**" in found
    assert "| task, test | bmru | rglru bmru |" in found
    assert "| copy_first_symbol_50, 10x | 0.125 | 0.125 |" in found
    assert "seed 0:" in found
    assert 'hybridlm memory-suite --mixers "bmru,rglru bmru" --tasks copy_first_symbol_50 --seeds 0 --quick' in found
    make_model("attention").save_pretrained("other")
    text, said = made("other", memory=store.folder)
    assert "holds no record of attention" in said[0]
    assert "Not included. `hybridlm memory-suite --mixers attention --out" in text
    for folder, says in (("nowhere", "there is no such folder"), (run / "final", "it holds no record")):
        with pytest.raises(UserError, match=f"--memory .*{says}"):
            made(run / "final", memory=folder)


def test_nobodys_own_card_is_replaced(run, monkeypatch):
    monkeypatch.setattr(write_module, "loss_and_validation", lambda _: b"a picture")
    path, picture = run / "final" / "README.md", run / "final" / card.PICTURE
    first, _ = made(run / "final")
    assert made(run / "final")[0] == first
    for own in (first.replace("Limits", "Limitations"), "My model.", first.replace("<!-- Written", "<!-- written")):
        path.write_text(own)
        with pytest.raises(UserError, match=r"somebody wrote or changed it. Replace it with --overwrite"):
            made(run / "final")
        assert path.read_text() == own
    assert made(run / "final", overwrite=True)[0] == first
    path.unlink()
    with pytest.raises(UserError, match=r"README_curves.png: it is in the way"):
        made(run / "final")
    text, _ = made(run / "final", "elsewhere.md")
    assert "(elsewhere_curves.png)" in text
    assert Path("elsewhere_curves.png").is_file()
    assert not path.exists()
    picture.unlink()


def test_without_matplotlib_there_is_no_picture_and_a_line_says_so(run, monkeypatch):
    made(run / "final")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    text, said = made(run / "final")
    assert said[0].startswith("No picture: Pictures need matplotlib.")
    assert "curves.png" not in text
    assert not (run / "final" / card.PICTURE).exists()


def test_the_command(run, no_picture, capsys):
    assert main(["card", "runs/small/final", "--license", "mit", "--language", "en, fr"]) == 0
    assert "Written to runs/small/final/README.md" in capsys.readouterr().out
    for argv, says in (
        (["nowhere"], "there is no such folder"),
        (["runs/small"], "Below it there is runs/small/final"),
        (["runs/small/final", "--name", "/"], "--name '/': must be OWNER/MODEL"),
        (["runs/small/final", "--name", "a\nb"], "--name 'a\\nb': must be OWNER/MODEL"),
        (["runs/small/final", "--license", "MIT"], "--license MIT: must be one of the Hub's names"),
        (["runs/small/final", "--language", "English"], "--language English: must be an ISO 639 code"),
        (["runs/small/final", "--out", "no/where.md"], "--out no/where.md: the folder no does not exist"),
        (["owner/model"], "cannot be had from the Hub"),
    ):
        assert main(["card", *argv]) == 2
        assert says in capsys.readouterr().err


def test_a_head_counts_its_own_parameters(tmp_path):
    model = hybridlm.HybridLMForSequenceClassification(make_model("bmru", num_labels=3).config)
    model.save_pretrained(tmp_path / "head")
    text, _ = made(tmp_path / "head")
    assert row(text, "parameters").startswith(f"{model.num_parameters():,} (")
    assert "pipeline_tag: text-classification" in text
