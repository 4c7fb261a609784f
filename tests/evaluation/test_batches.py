"""Prompts of a file: the texts of one by one, in any batches, from any place on."""

import json
import os
import random
from pathlib import Path

import pytest
import torch
from transformers import LogitsProcessorList

from hybridlm.cli import main
from hybridlm.errors import UserError
from hybridlm.evaluation import batches
from hybridlm.evaluation.batches import Draw, answer_file, processors
from hybridlm.evaluation.generate import generate_text
from hybridlm.evaluation.prompts import Output
from hybridlm.evaluation.reading import load_state, read_book

PROMPTS = ["Anne", "Anne had been a very pretty girl, but", "", "her bloom", "Ce n'est pas l'été", "2 µm", "early"]
DRAWN = {"temperature": 3.0, "top_k": 40, "top_p": 0.9, "max_new_tokens": 10}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"id": f"q{number}", "prompt": prompt, "tags": [number]} for number, prompt in enumerate(PROMPTS)]
    write("prompts.jsonl", rows)
    return tmp_path


def write(name, rows):
    with open(name, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def rows(name):
    with open(name, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize("pattern", ["rglru bmru", "lru sliding_attention", "mamba2 attention"])
def test_greedy_lines_are_those_of_one_by_one(build, tokenizer, pattern):
    model = build(pattern, sliding_window=8, tie_word_embeddings=False)
    model.save_pretrained("model")
    tokenizer.save_pretrained("model")
    facts = answer_file("model", "prompts.jsonl", "out.jsonl", batch_size=3, temperature=0, max_new_tokens=10)
    assert (facts["lines"], facts["kept"]) == (7, 0)
    found = rows("out.jsonl")
    for number, (prompt, row) in enumerate(zip(PROMPTS, found, strict=True)):
        alone = generate_text(model, tokenizer, prompt, temperature=0, max_new_tokens=10)
        assert row["text"] == alone.removeprefix(prompt)
        assert (row["id"], row["prompt"], row["tags"]) == (f"q{number}", prompt, [number])
        assert row["finish_reason"] == ("length" if row["tokens"] == 10 else "stop")


def test_what_is_drawn_does_not_depend_on_the_batch(checkpoint):
    for size in (1, 3, 7):
        answer_file(checkpoint, "prompts.jsonl", f"{size}.jsonl", batch_size=size, **DRAWN)
    assert rows("1.jsonl") == rows("3.jsonl") == rows("7.jsonl")
    answer_file(checkpoint, "prompts.jsonl", "seed.jsonl", seed=1, **DRAWN)
    texts = [[row["text"] for row in rows(name)] for name in ("1.jsonl", "seed.jsonl")]
    assert sum(one != two for one, two in zip(*texts, strict=True)) >= 4  # the model is sure of itself
    answer_file(checkpoint, "prompts.jsonl", "twice.jsonl", answers=2, batch_size=5, **DRAWN)
    twice = rows("twice.jsonl")
    assert [row["text"] for row in twice] == [text for pair in zip(*texts, strict=True) for text in pair]
    assert [(row["id"], row["seed"]) for row in twice[:3]] == [("q0", 0), ("q0", 1), ("q1", 0)]


def test_prompts_behind_a_state(checkpoint, model, tokenizer, text):
    with open("book.txt", "w", encoding="utf-8") as file:
        file.write(text)
    read_book(checkpoint, "book.txt", "book.state")
    chosen = {"temperature": 0, "max_new_tokens": 8}
    answer_file(checkpoint, "prompts.jsonl", "out.jsonl", state="book.state", batch_size=4, **chosen)
    state = load_state(model, tokenizer, "book.state")
    alone = [generate_text(model, tokenizer, prompt, state=state, **chosen) for prompt in PROMPTS]
    assert [row["prompt"] + row["text"] for row in rows("out.jsonl")] == alone
    with pytest.raises(UserError, match=r"state=\d+ \(now None\)"):
        answer_file(checkpoint, "prompts.jsonl", "out.jsonl", **chosen)


def test_an_interrupted_call_is_gone_on_with(checkpoint, monkeypatch, capsys):
    answer_file(checkpoint, "prompts.jsonl", "whole.jsonl", batch_size=2, **DRAWN)
    own, calls = batches._Writer.write, iter(range(100))

    def interrupted(self, asked):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return own(self, asked)

    monkeypatch.setattr(batches._Writer, "write", interrupted)
    asked = ["generate", str(checkpoint), "--input", "prompts.jsonl", "--output", "out.jsonl", "--batch-size", "2"]
    asked += ["--temperature", "3", "--top-k", "40", "--top-p", "0.9", "--max-new-tokens", "10"]
    assert main(asked) == 130
    assert (
        "out.jsonl keeps the lines that are written; the same command goes on behind them." in capsys.readouterr().err
    )
    assert rows("out.jsonl") == rows("whole.jsonl")[:4]
    with open("out.jsonl", "ab") as file:
        file.write(b'{"id": "q4", "prompt": "Ce n')
    assert main([*asked[:-1], "10", "--batch-size", "3"]) == 0
    assert "7 lines, 4 of them from before" in capsys.readouterr().out
    assert rows("out.jsonl") == rows("whole.jsonl")
    with open("out.jsonl", "rb") as file:
        before = file.read()
    assert main(asked) == 0
    with open("out.jsonl", "rb") as file:
        assert file.read() == before


def test_more_prompts_behind_those_that_were_answered(checkpoint):
    answer_file(checkpoint, "prompts.jsonl", "out.jsonl", **DRAWN)
    more = [*({"id": f"q{n}", "prompt": p, "tags": [n]} for n, p in enumerate(PROMPTS)), {"prompt": "And"}]
    write("prompts.jsonl", more)
    facts = answer_file(checkpoint, "prompts.jsonl", "out.jsonl", **DRAWN)
    assert (facts["lines"], facts["kept"]) == (8, 7)
    assert rows("out.jsonl")[7]["prompt"] == "And"


def test_what_does_not_go_on_is_refused_and_left_alone(checkpoint, build, tokenizer):
    answer_file(checkpoint, "prompts.jsonl", "out.jsonl", **DRAWN)
    with open("out.jsonl", "rb") as file:
        before = file.read()
    build("lru").save_pretrained("lru")
    tokenizer.save_pretrained("lru")

    def refused(message, path="prompts.jsonl", model=checkpoint, **changed):
        with pytest.raises(UserError, match=message):
            answer_file(model, path, "out.jsonl", **{**DRAWN, **changed})

    refused(r"begun with top_k=40 \(now 0\), seed=0 \(now 2\)", top_k=0, seed=2)
    refused(r"begun with temperature=3\.0", temperature=0.5, model="nowhere")  # before the model
    refused(r"begun with weights=\w+ \(now \w+\)\.", model="lru")
    refused(r"begun with weights=.*, dtype=float32 \(now bfloat16\)\.", dtype="bfloat16")
    write("few.jsonl", [{"id": "q0", "prompt": "Anne", "tags": [0]}])
    refused(r"out\.jsonl:2: there are more lines", path="few.jsonl")
    write("other.jsonl", [{"prompt": "Emma"}] * 7)
    refused(r"out\.jsonl:1: it answers another prompt", path="other.jsonl")
    with open("out.jsonl", "rb") as file:
        assert file.read() == before
    with open("out.jsonl.run.json", "w") as file:
        file.write("{")
    refused("is damaged")
    write("prompts.jsonl", [{"prompt": "Anne"}])
    write("in.run.json", [{"prompt": "Anne"}])
    os.mkfifo("pipe")
    for source, out, message in (
        ("prompts.jsonl", "prompts.jsonl", "no prompts.jsonl.run.json beside it"),
        ("prompts.jsonl", "nowhere/x", "does not exist"),
        ("prompts.jsonl", "pipe", "a device, pipe or socket stands there"),
        ("in.run.json", "in", "in.run.json stands beside it"),
    ):
        with pytest.raises(UserError, match=rf"--output .*{message}"):
            answer_file(checkpoint, source, out)
    assert rows("in.run.json") == [{"prompt": "Anne"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        (" \n\n", "all of its lines are blank"),
        ('{"prompt": "a"}\n{"prompt"\n', ":2: not a JSON value"),
        ('{"prompt": "a"}\n\n["b"]\n', ":3: a list, not an object"),
        ('{"text": "a"}\n', r":1: no text in the field 'prompt' \(fields text\)"),
        ('{"prompt": 3}\n', r":1: no text in the field 'prompt' \(int in it\)"),
        ('{"prompt": "\\ud800"}\n', ":1: 'prompt' holds half a surrogate pair"),
        ('{"prompt": "a", "seed": 1}\n', ":1: it has the field 'seed'"),
    ],
)
def test_prompts_are_looked_at_before_the_model(content, message):
    with open("bad.jsonl", "w") as file:
        file.write(content)
    with pytest.raises(UserError, match=message):
        answer_file("nowhere", "bad.jsonl", "out.jsonl")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_full_disk_is_said():
    output = Output("out.jsonl", [{"prompt": "Anne"}])
    output.path = Path("/dev/full")
    with pytest.raises(UserError, match=r"No space left on device\)\. It keeps the lines before"):
        output.append(0, [{"text": ""}])


def test_other_fields_are_carried_over_as_they_are(checkpoint):
    odd = {"prompt": "Anne", "half": "\ud800", "accents": "été", "deep": {"a": [1, None, 2.5]}}
    write("odd.jsonl", [odd])
    for _ in range(2):  # and are known again
        answer_file(checkpoint, "odd.jsonl", "out.jsonl", **DRAWN)
    (row,) = rows("out.jsonl")
    assert {name: row[name] for name in odd} == odd


def test_options_that_do_not_go_together(capsys):
    for options, message in (
        (["--input", "prompts.jsonl"], "--input: prompts of a file need both"),
        (["--output", "out.jsonl"], "--output: prompts of a file need both"),
        (["--batch-size", "4"], "--batch-size: prompts of a file need both"),
        (["Anne", "--input", "prompts.jsonl", "--output", "o"], "PROMPT 'Anne' and --input: give one of the two"),
        (["--input", "prompts.jsonl", "--output", "o", "--batch-size", "0"], "batch_size=0: must be at least 1"),
        (["--input", "none.jsonl", "--output", "o"], "none.jsonl: it cannot be read (No such file or directory)"),
        (["--input", "prompts.jsonl", "--output", "o", "--answers", "2", "--temperature", "0"], "all be the same"),
    ):
        assert main(["generate", "nowhere", *options]) == 2
        assert message in capsys.readouterr().err


def test_draws_have_the_distribution_of_the_logits():
    torch.manual_seed(0)
    logits = torch.tensor([[0.0, -torch.inf, 1.0, 2.0, -3.0]])
    draw = Draw([random.Random("a")])
    counts = torch.zeros(5)
    for _ in range(4000):
        scores = draw(torch.zeros(1, 1), logits)
        assert (scores > -torch.inf).sum() == 1
        counts += scores.isfinite()[0]
    assert torch.allclose(counts / 4000, logits.softmax(-1)[0], atol=0.02)
    assert counts[1] == 0


def test_the_smallest_and_the_largest_number_draw_possible_tokens():
    class Number:
        def __init__(self, value):
            self.value = value

        def random(self):
            return self.value

    logits = torch.tensor([[-torch.inf, 1.0, 1.0, -torch.inf]])
    for value, token in ((0.0, 1), (1 - 2**-53, 2)):
        assert Draw([Number(value)])(torch.zeros(1, 1), logits).argmax() == token


def test_the_distribution_is_that_of_transformers_options():
    chain = processors({"temperature": 0.5, "top_k": 2, "top_p": 0.99}, [random.Random(0)])
    assert [type(part).__name__ for part in chain] == [
        "TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "Draw",
    ]  # fmt: skip
    logits = torch.tensor([[0.0, 0.5, 1.0, -1.0]])
    shaped = LogitsProcessorList(chain[:3])(torch.zeros(1, 1, dtype=torch.long), logits)
    assert torch.allclose(shaped.softmax(-1), torch.tensor([[0.0, 0.2689, 0.7311, 0.0]]), atol=1e-4)  # four digits
    assert processors({"temperature": 0, "top_k": 0, "top_p": 1.0}, []) == []
