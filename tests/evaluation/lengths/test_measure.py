"""From checkpoints and files to facts, lines and a picture."""

import json
import math

import pytest
import torch

from hybridlm.data.tokenizer import train_tokenizer
from hybridlm.errors import UserError
from hybridlm.evaluation.bits_per_byte import evaluate_text
from hybridlm.evaluation.lengths.measure import evaluate_lengths
from hybridlm.evaluation.lengths.picture import picture
from hybridlm.evaluation.lengths.report import default_output, render

LENGTHS = [4, 16, 80]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, others, tokenizer, checkpoint, long_text):
    """Checkpoints llama, gpt2 (64 positions) and coarse (another tokenizer); texts a.txt, b.txt, short.txt."""
    place = tmp_path_factory.mktemp("lengths")
    for name, model in others.items():
        model.save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    others["llama"].save_pretrained(place / "coarse")
    train_tokenizer([long_text], vocab_size=270).save_pretrained(place / "coarse")
    (place / "a.txt").write_text(long_text, encoding="utf-8")
    (place / "b.txt").write_text(long_text[300:800] + " And so on.", encoding="utf-8")
    (place / "short.txt").write_text("Anne", encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def facts(folder, checkpoint):
    texts = [folder / name for name in ("a.txt", "short.txt", "b.txt")]
    return evaluate_lengths([checkpoint, folder / "gpt2", folder / "coarse"], texts, LENGTHS)


def test_facts_can_be_written_and_say_how_they_were_measured(facts, folder, checkpoint):
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts["lengths"] == LENGTHS
    assert facts["texts_too_short"] == [str(folder / "short.txt")]
    assert facts["same_tokens"] is False
    assert facts["target_bytes"] < facts["n_bytes"]
    for each in facts["checkpoints"]:
        assert each["tokenizer_is_lossless"]
        assert (each["dtype"], each["start_symbol"]) == ("float32", "<|endoftext|>")
        assert {"vocab_size", "versions", "parameters", "in_words", "trained_length"} < each.keys()
        ahead = [row["context_bytes"] for row in each["by_context"] if row["not_possible"] is None]
        assert ahead == sorted(ahead)
    ours, gpt2, coarse = facts["checkpoints"]
    assert ours["checkpoint"] == str(checkpoint)
    assert coarse["n_tokens"] > ours["n_tokens"]  # other tokens of the same bytes
    assert [row["not_possible"] is None for row in gpt2["by_context"]] == [True, True, False]
    assert [row["to"] for row in gpt2["by_position"]] == [4, 16]
    assert gpt2["still_improves"] in (True, False)


def test_differences_are_those_of_the_numbers(facts):
    ours, gpt2, coarse = facts["checkpoints"]
    values = {row["length"]: row["bits_per_byte"] for row in ours["by_context"]}
    for gain in ours["better_than_shorter"]:
        difference = values[gain["shorter"]] - values[gain["longer"]]
        assert gain["bits_per_byte"] == pytest.approx(difference, abs=1e-9)
        assert gain["standard_error"] > 0
    assert len(ours["better_than_shorter"]) == 3
    assert [(each["checkpoint"], each["length"]) for each in facts["better_than_the_first"]] == [
        (gpt2["checkpoint"], 4),
        (gpt2["checkpoint"], 16),
        *((coarse["checkpoint"], length) for length in LENGTHS),
    ]
    last, own = facts["better_than_the_first"][-1], coarse["by_context"][-1]
    assert last["bits_per_byte"] == pytest.approx(values[80] - own["bits_per_byte"], abs=1e-9)


def test_one_window_over_a_whole_text_is_the_text_carried(build, tokenizer, checkpoint, folder, long_text):
    whole = evaluate_text(build(), tokenizer, long_text, context=50, carry_state=True)
    facts = evaluate_lengths([checkpoint], [folder / "a.txt"], [16, whole["n_tokens"]])
    rows = facts["checkpoints"][0]["by_position"]
    assert [(row["from"], row["to"], row["windows"]) for row in rows] == [(1, 16, 1), (17, whole["n_tokens"], 1)]
    assert sum(row["n_bytes"] for row in rows) == whole["n_bytes"]
    nats = math.log(2) * sum(row["bits_per_byte"] * row["n_bytes"] for row in rows)
    assert nats == pytest.approx(whole["nats"], rel=1e-5)


def test_lines_for_a_terminal(facts, folder):
    lines = render(facts)
    for each in facts["checkpoints"]:
        assert each["in_words"] in lines
        assert f"{each['by_context'][0]['bits_per_byte']:.4f} ± " in lines
    assert "not possible the model has an embedding for each of 64 positions" in " ".join(lines.split())
    assert f"left out, as shorter than the longest length: {folder / 'short.txt'}" in lines
    assert "in tokens of each checkpoint's own tokenizer" in lines
    assert "better than model" in lines


@pytest.mark.parametrize("which", [[0], [0, 1, 2]])
def test_a_picture_is_written_and_nothing_else(facts, tmp_path, which):
    part = facts | {"checkpoints": [facts["checkpoints"][at] for at in which], "same_tokens": which == [0]}
    out = picture(part, tmp_path / "lengths.png")
    assert out.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["lengths.png"]


def test_what_is_drawn_is_what_was_measured(facts, monkeypatch, tmp_path):
    from hybridlm.evaluation.lengths import picture as under_test

    drawn = []
    monkeypatch.setattr(under_test, "_save", lambda figure, out: drawn.append(figure))
    picture(facts, tmp_path / "lengths.png")
    left, middle, right = drawn[0].axes
    gpt2 = facts["checkpoints"][1]
    possible = [row for row in gpt2["by_context"] if row["not_possible"] is None]
    expected = [[row["context_bytes"], row["bits_per_byte"]] for row in possible]
    assert expected in [line.get_xydata().tolist() for line in left.lines]
    gains = [0.0, gpt2["better_than_shorter"][0]["bits_per_byte"]]
    assert gains in [line.get_ydata().tolist() for line in middle.lines if line.get_linestyle() == "-"]
    by_position = [row["bits_per_byte"] for row in gpt2["by_position"] if row["bits_per_byte"] is not None]
    assert by_position in [list(line.get_ydata()) for line in right.lines]
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert labels[1].startswith("gpt2: ")
    assert labels[1].endswith("not possible from 80 tokens")


def test_numbers_lie_beside_the_checkpoint(tmp_path):
    assert default_output(tmp_path, ["x/emma.txt"], LENGTHS) == tmp_path / "evaluation" / "emma-lengths-4-80.json"
    assert default_output("m", ["a.txt", "b.txt"], LENGTHS).name == "a+1-lengths-4-80.json"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lengths": [16, 4]}, "4 comes after 16"),
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"text_files": ["a.txt", "a.txt"]}, r"text file .*a\.txt: it is there 2 times"),
        ({"checkpoints": ["llama", "llama"]}, r"checkpoint .*llama: it is there 2 times"),
        ({"lengths": [4, 4096]}, r"the longest is 4k, the longest text, .*a\.txt, has"),
        ({"checkpoints": ["gpt2"], "lengths": [65, 80]}, r"gpt2 cannot be measured at 65 tokens: the model"),
        ({"checkpoints": ["nothing"]}, "there is no such folder"),
        ({"text_files": ["none.txt"]}, "cannot be read"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(folder, change, says):
    given = {"checkpoints": ["llama"], "text_files": ["a.txt"], "lengths": LENGTHS} | change
    for field in ("checkpoints", "text_files"):
        given[field] = [folder / name for name in given[field]]
    with pytest.raises(UserError, match=says):
        evaluate_lengths(**given)


def test_a_checkpoint_that_cannot_be_measured_takes_no_other_along(folder, tmp_path):
    facts = evaluate_lengths([folder / "gpt2", folder / "llama"], [folder / "a.txt"], [65, 80])
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    none, llama = facts["checkpoints"]
    assert none["in_words"] == "None of the lengths could be measured."
    assert (none["by_position"], facts["better_than_the_first"]) == ([], [])
    assert all(row["bits_per_byte"] > 0 for row in llama["by_context"])
    assert "None of the lengths" in render(facts)
    assert picture(facts, tmp_path / "lengths.png").stat().st_size > 5000


def test_dtype_and_progress(folder):
    told = []
    facts = evaluate_lengths(
        [folder / "llama"], [folder / "a.txt"], [4, 16], dtype="bfloat16", batch_size=3,
        progress=lambda tokens, share: told.append((tokens, share)),
    )  # fmt: skip
    assert facts["checkpoints"][0]["dtype"] == "bfloat16"
    assert told[-1][1] == 1.0
    assert told == sorted(told)
    assert torch.isfinite(torch.tensor([row["bits_per_byte"] for row in facts["checkpoints"][0]["by_context"]])).all()
