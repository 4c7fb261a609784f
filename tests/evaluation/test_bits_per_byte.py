"""Bits per byte against sums made by hand, and against the windows that validation uses."""

import json
import math

import pytest
import torch

from hybridlm.data.loader import Windows
from hybridlm.data.prepare import PrepareConfig, prepare
from hybridlm.data.shards import TokenShards
from hybridlm.data.tokenizer import prompt_ids
from hybridlm.errors import UserError
from hybridlm.evaluation.bits_per_byte import evaluate_text, read_file
from hybridlm.evaluation.report import default_output, evaluate_checkpoint, render, trained_length, write_json

PATTERNS = ["rglru bmru", "lru attention"]


def nats_by_hand(model, ids, context):
    """Token by token: each from a fresh forward over its window so far."""
    total = 0.0
    for i in range(1, len(ids)):
        start = (i - 1) // context * context
        with torch.no_grad():
            logits = model(input_ids=ids[start:i].unsqueeze(0)).logits[0, -1]
        total -= torch.log_softmax(logits.double(), 0)[ids[i]].item()
    return total


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("context", [1, 7, 10_000])
def test_nats_are_the_sum_over_single_predictions(build, tokenizer, text, pattern, context):
    model, part = build(pattern), text[:150]
    facts = evaluate_text(model, tokenizer, part, context=context)
    ids = torch.tensor(prompt_ids(tokenizer, part))
    assert facts["nats"] == pytest.approx(nats_by_hand(model, ids, context), rel=1e-5)
    assert facts["n_tokens"] == len(ids) - 1
    assert facts["n_bytes"] == len(part.encode())
    assert facts["bits_per_byte"] == pytest.approx(facts["nats"] / math.log(2) / len(part.encode()), rel=1e-12)
    assert facts["perplexity_per_token"] == pytest.approx(math.exp(facts["nats"] / (len(ids) - 1)), rel=1e-12)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_carried_state_scores_as_one_window_does(build, tokenizer, text, pattern):
    model = build(pattern)
    whole = evaluate_text(model, tokenizer, text, context=10_000)
    for context in (1, 16, 10_000):
        carried = evaluate_text(model, tokenizer, text, context=context, carry_state=True)
        assert carried["nats"] == pytest.approx(whole["nats"], rel=1e-5)
    fresh = evaluate_text(model, tokenizer, text, context=16)
    assert abs(fresh["nats"] - whole["nats"]) > 1e-3 * whole["nats"]  # the comparison above could have failed


def test_batch_size_changes_no_number(model, tokenizer, text):
    one, three = (evaluate_text(model, tokenizer, text, context=16, batch_size=rows)["nats"] for rows in (1, 3))
    assert one == pytest.approx(three, rel=1e-6)


def test_a_uniform_model_needs_the_logarithm_of_the_vocabulary(build, tokenizer, text):
    model = build()
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()  # tied: all logits are 0
    facts = evaluate_text(model, tokenizer, text, context=32)
    assert facts["nats"] == pytest.approx(facts["n_tokens"] * math.log(len(tokenizer)), rel=1e-6)


def test_the_windows_are_those_of_validation(tmp_path, build, text):
    document = tmp_path / "one.txt"
    document.write_text(text, encoding="utf-8")
    config = PrepareConfig(
        sources=[{"path": str(document)}],
        output=str(tmp_path / "data"),
        vocab_size=300,
        validation={"by": "position", "share": 0.4},
    )
    data = prepare(config, log=lambda _: None)
    shards = TokenShards(data, "validation")
    model = build(vocab_size=shards.vocab_size)
    windows = Windows(shards, 16, seed=0, shuffle=False, text_only=True)
    total = 0.0
    for i in range(windows.per_epoch):
        row = {name: torch.as_tensor(value).unsqueeze(0) for name, value in windows.sample(i).items()}
        with torch.no_grad():
            total += float(model(**row, num_items_in_batch=1).loss)
    held_out = shards.tokenizer.decode(shards.document(0), skip_special_tokens=True)
    facts = evaluate_text(model, shards.tokenizer, held_out, context=16)
    assert facts["n_bytes"] == shards.n_bytes
    assert facts["nats"] == pytest.approx(total, rel=1e-5)


def test_the_mode_of_the_model_is_left_as_it_was(model, tokenizer, text):
    for training in (True, False):
        model.train(training)
        evaluate_text(model, tokenizer, text, context=16)
        assert model.training is training


def test_the_facts_can_be_written_and_say_how_they_were_measured(model, tokenizer, text):
    facts = evaluate_text(model.to(torch.bfloat16), tokenizer, text, context=16)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert (facts["dtype"], facts["context"], facts["carry_state"]) == ("bfloat16", 16, False)
    assert facts["start_symbol"] == "<|endoftext|>"
    assert facts["tokenizer_is_lossless"]
    assert facts["epsilon"] == 0
    lines = render({"checkpoint": "here", "text": "a.txt"} | facts)
    assert f"{facts['bits_per_byte']:.4f}" in lines
    assert "bfloat16" in lines


def test_a_prompt_is_the_beginning_of_a_document(tokenizer):
    assert prompt_ids(tokenizer, "") == [tokenizer.bos_token_id]
    assert prompt_ids(tokenizer, "Anne") == prompt_ids(tokenizer, "Anne had")[: len(prompt_ids(tokenizer, "Anne"))]


@pytest.mark.parametrize(
    ("keywords", "names"),
    [
        ({"context": 0}, "context=0"),
        ({"context": 16, "batch_size": 0}, "batch_size=0"),
        ({"context": 16, "batch_size": 2, "carry_state": True}, "batch_size=2"),
    ],
)
def test_numbers_out_of_range_are_refused(model, tokenizer, text, keywords, names):
    with pytest.raises(UserError, match=names):
        evaluate_text(model, tokenizer, text, **keywords)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_predictions_that_are_not_finite_are_refused(model, tokenizer, text, value):
    with torch.no_grad():
        model.model.norm.weight[0] = value
    with pytest.raises(UserError, match=r"not finite in torch\.float32"):
        evaluate_text(model, tokenizer, text, context=16)


def test_an_empty_text_is_refused(model, tokenizer):
    with pytest.raises(UserError, match="empty"):
        evaluate_text(model, tokenizer, "", context=4)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"abc\xff\xfedef", "byte 3 is not UTF-8"),
        (b"\xef\xbb\xbfabc\xff", "byte 6 is"),
        (b"abc\x00def", "byte 3 is 0"),
    ],
)
def test_files_that_are_no_text_are_refused(tmp_path, data, says):
    path = tmp_path / "bad.txt"
    path.write_bytes(data)
    with pytest.raises(UserError, match=says):
        read_file(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"missing\.txt"):
        read_file(tmp_path / "missing.txt")


def test_a_file_is_read_as_preparation_reads_it(tmp_path):
    path = tmp_path / "windows.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert read_file(path) == "one\ntwo\n"


def test_a_checkpoint_is_measured_at_the_length_of_its_training(tmp_path, checkpoint, text):
    path = tmp_path / "t.txt"
    path.write_text(text, encoding="utf-8")
    assert trained_length(checkpoint) is None
    assert evaluate_checkpoint(checkpoint, path)["context"] == 2048  # max_position_embeddings
    facts = evaluate_checkpoint(checkpoint, path, context=16, dtype="bfloat16")
    assert facts["dtype"] == "bfloat16"
    state = tmp_path / "model" / "training_state" / "state.json"
    state.parent.mkdir(parents=True)
    state.write_text(json.dumps({"settings": {"data.sequence_length": 48}}))
    assert trained_length(tmp_path / "model") == 48


def test_numbers_lie_beside_the_checkpoint(tmp_path):
    facts = {"checkpoint": str(tmp_path), "text": "books/emma.txt", "context": 16, "carry_state": True}
    out = default_output(facts)
    assert out == tmp_path / "evaluation" / "emma-16-carried.json"
    write_json(out, facts)
    assert json.loads(out.read_text()) == facts
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    with pytest.raises(UserError, match="Give --out"):
        default_output(facts | {"checkpoint": "owner/model"})


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        write_json(tmp_path / "file" / "out.json", {})
