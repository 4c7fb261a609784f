"""Tasks of lm-evaluation-harness, all local: numbers checked by hand, at any batch size, and every refusal."""

import json
import math
import shutil
import sys

import pytest
import torch
import yaml
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from hybridlm import cli
from hybridlm.data.tokenizer import END_OF_TEXT, prompt_ids
from hybridlm.errors import UserError
from hybridlm.evaluation.bits_per_byte import evaluate_text
from hybridlm.evaluation.harness import default_output, evaluate_checkpoint_tasks, evaluate_tasks, render
from hybridlm.evaluation.harness_model import harness_model
from hybridlm.evaluation.harness_tasks import find_tasks, listening

PATTERNS = ["rglru bmru", "lru cmru attention"]
QUESTIONS = ["Anne had been", "a very pretty girl, but her bloom", "Ce n'est pas", "her", "ça dépend: 2 µm. Anne had"]
CHOICES = [" a very pretty girl", " vanished", " l'été, ça dépend"]
TASKS = {
    "choose": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "write": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{written}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6},
        "metric_list": [{"metric": "exact_match"}],
    },
    "read": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}, {"metric": "byte_perplexity"}],
    },
}


def write_tasks(folder, rows, **tasks):
    folder.mkdir(exist_ok=True)
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
    for name, fields in tasks.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name} | source | fields), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    rows = [
        {"text": text, "choices": CHOICES, "answer": i % 3, "written": "nothing"} for i, text in enumerate(QUESTIONS)
    ]
    return write_tasks(tmp_path / "tasks", rows, **TASKS)


@torch.no_grad()
def nats(model, tokenizer, text, answer=""):
    """-log P(answer | start symbol, text); of the text itself where there is no answer."""
    ids = torch.tensor([prompt_ids(tokenizer, text + answer)])
    given = len(prompt_ids(tokenizer, text)) if answer else 1
    logits = model(input_ids=ids).logits[0, given - 1 : -1]
    return float(F.cross_entropy(logits, ids[0, given:], reduction="sum"))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_numbers_are_those_computed_by_hand(build, tokenizer, folder, pattern):
    model = build(pattern)
    facts = evaluate_tasks(model, tokenizer, find_tasks(["choose", "read"], folder), context=64)
    hits = normed = 0
    for i, text in enumerate(QUESTIONS):
        scores = [-nats(model, tokenizer, text, choice) for choice in CHOICES]
        hits += max(range(3), key=lambda k: scores[k]) == i % 3
        normed += max(range(3), key=lambda k: scores[k] / len(CHOICES[k])) == i % 3
    found = facts["tasks"]["choose"]["metrics"]
    assert (found["acc"]["value"], found["acc_norm"]["value"]) == (hits / 5, normed / 5)
    assert found["acc"]["stderr"] == pytest.approx(math.sqrt(hits / 5 * (1 - hits / 5) / 4))
    total = sum(nats(model, tokenizer, text) for text in QUESTIONS)
    n_bytes = sum(len(text.encode()) for text in QUESTIONS)
    found = facts["tasks"]["read"]["metrics"]
    assert found["bits_per_byte"]["value"] == pytest.approx(total / math.log(2) / n_bytes, abs=1e-5)
    assert found["byte_perplexity"]["value"] == pytest.approx(math.exp(total / n_bytes), rel=1e-5)
    assert (facts["truncated"], facts["notes"]) == (0, [])
    assert facts["tasks"]["choose"]["dataset"] == {"path": "json", "name": None, "split": "test"}


def request(*arguments):
    from lm_eval.api.instance import Instance

    return Instance(request_type="", doc={}, arguments=arguments, idx=0)


def test_a_bootstrapped_error(build, tokenizer, tmp_path, capfd):
    """Of a metric without a closed form; in this process, and without a line about it."""
    model = build(initializer_range=0.05)  # a perplexity of some hundreds
    guess = {
        "output_type": "loglikelihood",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "perplexity"}],
    }
    rows = [{"text": text, "answer": CHOICES[i % 3]} for i, text in enumerate(QUESTIONS)]
    tasks = find_tasks(["guess"], write_tasks(tmp_path / "tasks", rows, guess=guess))
    found = evaluate_tasks(model, tokenizer, tasks, context=64)["tasks"]["guess"]["metrics"]["perplexity"]
    scores = torch.tensor([nats(model, tokenizer, row["text"], row["answer"]) for row in rows]).double()
    assert found["value"] == pytest.approx(float(scores.mean().exp()), rel=1e-4)
    resampled = scores[torch.randint(5, (4000, 5))].mean(1).exp().std()
    assert found["stderr"] == pytest.approx(float(resampled), rel=0.2)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("rows", [1, 4])
def test_one_likelihood_by_hand(build, tokenizer, pattern, rows):
    """With a prompt and without one (the same tokens, cut differently), with words that look like a start symbol."""
    model = build(pattern)
    pairs = [("Anne had", " been"), ("", "Anne had been"), (f"Anne {END_OF_TEXT}", " had"), ("her bloom " * 3, "had")]
    with listening():
        wrapped = harness_model(model, tokenizer, context=64, batch_size=rows)
        found = wrapped.loglikelihood([request(*pair) for pair in pairs])
    for (text, answer), (value, _) in zip(pairs, found, strict=True):
        spaces = text[len(text.rstrip()) :]  # lm_eval counts them to the answer
        by_hand = nats(model, tokenizer, text.rstrip(), spaces + answer)
        assert value == pytest.approx(-by_hand, abs=1e-4)


def test_a_rolling_text_is_measured_as_evaluate_text_does(model, tokenizer, text, tmp_path):
    """The two commands agree where the text fits into one window; longer ones roll on with more context."""
    folder = write_tasks(tmp_path / "tasks", [{"text": text}], read=TASKS["read"])
    tasks = find_tasks(["read"], folder)
    value = {}
    for context in (512, 64):
        facts = evaluate_tasks(model, tokenizer, tasks, context=context)
        value[context] = facts["tasks"]["read"]["metrics"]["bits_per_byte"]["value"]
    assert value[512] == pytest.approx(evaluate_text(model, tokenizer, text, context=512)["bits_per_byte"], abs=1e-5)
    assert value[64] != pytest.approx(value[512], abs=1e-3)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_batch_size_changes_nothing(build, tokenizer, folder, pattern):
    """Likelihoods are padded on the right without a mask, prompts of generation on the left with one."""
    model, texts = build(pattern), [(text, {"until": ["\n"], "max_gen_toks": 6}) for text in QUESTIONS]
    pairs = [(text, choice) for text in QUESTIONS for choice in CHOICES]
    likelihoods, written = [], []
    with listening():
        for rows in (1, 8):
            wrapped = harness_model(model, tokenizer, context=64, batch_size=rows)
            likelihoods.append([value for value, _ in wrapped.loglikelihood([request(*pair) for pair in pairs])])
            written.append(wrapped.generate_until([request(*pair) for pair in texts]))
    assert likelihoods[0] == pytest.approx(likelihoods[1], abs=1e-4)
    assert written[0] == written[1]
    assert len({text for text in written[0] if text}) > 1
    ids = torch.tensor([prompt_ids(tokenizer, QUESTIONS[1])])
    by_hand = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    assert written[0][1] == tokenizer.decode(by_hand[0, ids.shape[1] :], skip_special_tokens=True).split("\n")[0]

    facts = [
        evaluate_tasks(model, tokenizer, find_tasks(["choose", "write", "read"], folder), context=64, batch_size=rows)
        for rows in (1, 8)
    ]
    assert [fact.pop("batch_size") for fact in facts] == [1, 8]
    one, many = (fact["tasks"].pop("read")["metrics"]["bits_per_byte"]["value"] for fact in facts)
    assert one == pytest.approx(many, abs=1e-5)
    assert facts[0] == facts[1]


def test_generation_is_scored(build, tokenizer, tmp_path):
    """What the model writes is counted as a hit, and only that."""
    model = build()
    ids = torch.tensor([prompt_ids(tokenizer, QUESTIONS[0])])
    written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    answer = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True).split("\n")[0]
    rows = [{"text": QUESTIONS[0], "written": answer}, {"text": QUESTIONS[0], "written": answer + "!"}]
    tasks = find_tasks(["write"], write_tasks(tmp_path / "tasks", rows, write=TASKS["write"]))
    assert (
        evaluate_tasks(model, tokenizer, tasks, context=64)["tasks"]["write"]["metrics"]["exact_match"]["value"] == 0.5
    )


def test_a_tokenizer_without_a_start_symbol_of_its_own(build, tokenizer, tmp_path):
    """As in training, every text begins with one all the same."""
    bare = PreTrainedTokenizerFast.from_pretrained(
        tokenizer.save_pretrained(tmp_path / "tokenizer")[0].rsplit("/", 1)[0]
    )
    bare.backend_tokenizer.post_processor = None
    assert bare("Anne")["input_ids"] == tokenizer("Anne")["input_ids"][1:]
    model, results = build(), []
    with listening():
        for some in (tokenizer, bare):
            wrapped = harness_model(model, some, context=64, batch_size=2)
            texts = [request(text, {"max_gen_toks": 5}) for text in QUESTIONS]
            pairs, whole = [request(text, CHOICES[0]) for text in QUESTIONS], [request(text) for text in QUESTIONS]
            results.append(
                (wrapped.loglikelihood(pairs), wrapped.loglikelihood_rolling(whole), wrapped.generate_until(texts))
            )
    assert results[0] == results[1]


def test_examples_in_the_prompt_and_a_limit(model, tokenizer, folder):
    tasks = find_tasks(["choose"], folder)
    none = evaluate_tasks(model, tokenizer, tasks, context=256)["tasks"]["choose"]
    two = evaluate_tasks(model, tokenizer, tasks, context=256, num_fewshot=2, limit=3)
    assert (none["num_fewshot"], none["examples"]) == (0, 5)
    assert (two["tasks"]["choose"]["num_fewshot"], two["tasks"]["choose"]["examples"], two["limit"]) == (2, 3, 3)
    prompt = tasks["tasks"]["choose"].instances[0].args[0]
    assert sum(prompt.count(text) for text in QUESTIONS) >= 3
    assert "only the first 3 examples" in render({"checkpoint": "model"} | two)
    assert evaluate_tasks(model, tokenizer, tasks, context=256)["tasks"]["choose"] == none


def test_prompts_that_lose_their_beginning_are_counted(model, tokenizer, folder):
    facts = evaluate_tasks(model, tokenizer, find_tasks(["choose", "write"], folder), context=12)
    assert facts["truncated"] > 0
    assert facts["notes"] == []
    assert "lost their beginning" in render({"checkpoint": "model"} | facts)


@pytest.mark.parametrize("context", [8, 12, 20, 64])
def test_prompts_of_choices_that_lose_their_beginning_are_counted_one_by_one(model, tokenizer, folder, context):
    """The last token of an answer is not read: a window of `context` tokens scores one more."""
    choices = [" her", " vanished"]
    rows = [{"text": text, "choices": choices, "answer": 0} for text in QUESTIONS]
    tasks = find_tasks(["choose"], write_tasks(folder, rows, choose=TASKS["choose"] | {"target_delimiter": ""}))
    lengths = [len(prompt_ids(tokenizer, text + choice)) for text in QUESTIONS for choice in choices]
    longer = sum(length > context + 1 for length in lengths)
    assert (longer > 0) == (context < 64)
    assert evaluate_tasks(model, tokenizer, tasks, context=context)["truncated"] == longer


def test_the_command(checkpoint, folder, tmp_path, capfd):
    model = shutil.copytree(checkpoint, tmp_path / "model")
    arguments = ["evaluate", str(model), "--tasks", "choose,wr*", "--include-path", str(folder), "--context", "64"]
    assert cli.main([*arguments, "--batch-size", "2"]) == 0
    printed, noise = capfd.readouterr()
    assert noise == ""
    (written,) = (model / "evaluation").glob("*.json")
    assert written.name == "tasks-choose+write-64.json"
    assert str(written) in printed
    facts = json.loads(written.read_text(encoding="utf-8"))
    assert list(facts["tasks"]) == ["choose", "write"]
    assert f"{facts['tasks']['choose']['metrics']['acc']['value']:.4f}" in printed
    assert facts["versions"].keys() == {"hybridlm", "torch", "transformers", "lm_eval"}
    wanted = {"dtype": "float32", "context": 64, "vocab_size": 300, "start_symbol": END_OF_TEXT, "batch_size": 2}
    assert {name: facts[name] for name in wanted} == wanted


def test_one_of_text_and_tasks(capsys):
    for options in ([], ["--text", "a", "--tasks", "b"]):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["evaluate", "model", *options])
    assert cli.main(["evaluate", "model", "--text", "a", "--limit", "3"]) == 2
    assert cli.main(["evaluate", "model", "--tasks", "a", "--carry-state"]) == 2
    said = capsys.readouterr().err
    assert "--limit: has no meaning with --text" in said
    assert "--carry-state: has no meaning with --tasks" in said


def test_lm_eval_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(UserError, match=r"pip install -c constraints.txt '\.\[eval\]'"):
        find_tasks(["arc_easy"])


@pytest.fixture
def only_own(monkeypatch):
    """Without lm_eval's own tasks, whose files take seconds to read."""
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(
        "lm_eval.tasks.TaskManager", lambda **options: TaskManager(**(options | {"include_defaults": False}))
    )


def test_lm_evals_own_tasks_are_known():
    with pytest.raises(UserError, match="'arc_eazy': unknown; did you mean 'arc_easy'"):
        find_tasks(["arc_eazy"])


@pytest.mark.usefixtures("only_own")
def test_tasks_that_cannot_be_had(folder, tmp_path):
    with pytest.raises(UserError, match="'chose': unknown; did you mean 'choose'"):
        find_tasks(["read", "chose"], folder)
    with pytest.raises(UserError, match="there is no such folder"):
        find_tasks(["choose"], tmp_path / "nowhere")
    with pytest.raises(UserError, match="none is named"):
        find_tasks([""])
    (folder / "torn.yaml").write_text("task: [torn")
    with pytest.raises(UserError, match=r"'torn': unknown.*torn\.yaml \("):
        find_tasks(["torn"], folder)
    write_tasks(folder, [], far=TASKS["read"] | {"dataset_path": "someone/far-away", "dataset_kwargs": {}})
    with pytest.raises(UserError, match=r"tasks far: the data lies on the Hugging Face Hub, .*HF_HUB_OFFLINE"):
        find_tasks(["far"], folder)
    (folder / "rows.jsonl").unlink()
    with pytest.raises(UserError, match=r"tasks choose: cannot be loaded .*rows\.jsonl"):
        find_tasks(["choose"], folder)


def test_numbers_that_cannot_be(model, tokenizer, folder, checkpoint):
    def refused(task, **options):
        with pytest.raises(UserError) as error:
            evaluate_tasks(model, tokenizer, find_tasks([task], folder), **{"context": 64, **options})
        return str(error.value)

    assert refused("choose", context=0) == "context=0: must be at least 1."
    assert refused("choose", limit=0) == "limit=0: must be at least 1."
    assert refused("choose", num_fewshot=-1) == "num_fewshot=-1: must be at least 0."
    assert "alone has" in refused("choose", context=2)
    assert "Give --context 12 or more" in refused("write", context=6)
    zero = folder / "choose.yaml"
    zero.write_text(zero.read_text() + "num_fewshot: 0\n")
    assert "defined without examples" in refused("choose", num_fewshot=3)
    with pytest.raises(UserError, match="batch_size=0"):
        evaluate_checkpoint_tasks(checkpoint, ["choose"], batch_size=0)
    with pytest.raises(UserError, match="--out"):
        default_output({"checkpoint": "someone/model"})


def test_names_of_files_have_an_end(tmp_path):
    facts = {"checkpoint": str(tmp_path), "context": 64, "limit": 5}
    many = [dict.fromkeys((*("abcdefghijklmnopqrstuvwxyz" * 2), "x" * 60, last)) for last in ("yes", "no")]
    names = {default_output(facts | {"tasks": tasks}).name for tasks in many}
    assert len(names) == 2
    assert all(len(name) < 130 and name.endswith("-64-first-5.json") for name in names)
