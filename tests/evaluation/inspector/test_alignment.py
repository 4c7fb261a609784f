"""Alignment against loops over numpy's own correlation, and on a model with a unit that latches quotation marks."""

import random

import numpy as np
import pytest
import torch

from hybridlm import HybridLMConfig, HybridLMForCausalLM
from hybridlm.data.tokenizer import train_tokenizer
from hybridlm.evaluation.inspector import alignment, recording
from hybridlm.evaluation.inspector.alignment import align
from hybridlm.evaluation.inspector.features import FEATURES, token_features
from hybridlm.evaluation.inspector.recording import record
from hybridlm.evaluation.inspector.spans import token_spans

_WORDS = random.Random(0)
TEXT = "".join(
    _WORDS.choice(["Anne", "said", "“Go", "on”", "she", "it", "was", "”", "“", "bath. The"]) + " " for _ in range(600)
)


def correlation(one, other):
    return 0.0 if len(set(one)) == 1 else np.corrcoef(one, other)[0, 1]


def test_r_and_chance_are_those_of_loops(by_hand, letters, monkeypatch):
    monkeypatch.setattr(recording, "AT_ONCE", 4)
    monkeypatch.setattr(alignment, "_NUMBERS", 500)
    monkeypatch.setattr(alignment, "SHIFTS", 19)
    generator = np.random.default_rng(1)
    spans = letters('One. "Two three," four.\n\nFive "six" seven. Eight.')
    tokens = len(spans.ids)
    signs = generator.choice([-1, 1], (9, tokens))
    signs[2], writes = 1, generator.random((9, tokens)) < 0.2
    found = align(by_hand(signs, writes), spans)
    assert [each.feature.name for each in found] == [feature.name for feature in FEATURES]
    shifts = sorted({k * (tokens - 1) // 20 for k in range(1, 20)})
    for each in found:
        value = token_features(spans)[each.feature.name]
        series = (writes if each.feature.series == "writes" else signs)[:, 1:]
        wanted = np.array([correlation(row, value) for row in series])
        assert each.r == pytest.approx(wanted, abs=1e-5)
        assert each.best == sorted(range(9), key=(-np.abs(wanted)).tolist().__getitem__)[:5]
        if each.feature.name == "position in document":
            assert each.chance is each.p is None
            continue
        luck = sorted(max(abs(correlation(row, np.roll(value, shift))) for row in series) for shift in shifts)
        assert each.chance == pytest.approx(luck[18], abs=1e-5)  # at least 95 % of 19 are not above it
        best = np.abs(wanted).max()
        assert each.p == (1 + sum(value >= best for value in luck)) / 20


def latching_model(tokenizer, spans):
    """A `bmru` whose unit 0 is set by opening marks and reset by closing ones; the others read random inputs."""
    torch.manual_seed(0)
    special = {f"{name}_token_id": tokenizer.bos_token_id for name in ("bos", "eos", "pad")}
    config = HybridLMConfig(
        pattern="bmru", vocab_size=len(tokenizer), hidden_size=16, num_attention_heads=2, conv_kernel=0, **special
    )
    model = HybridLMForCausalLM(config).eval()
    mixer = model.model.layers[0].mixer
    (cell,) = mixer.cells
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 0
        for token, number in enumerate(spans.ids):
            piece = spans.piece(token)
            last = max(piece.rfind("“"), piece.rfind("”"))
            model.model.embed_tokens.weight[number, 0] = 0 if last < 0 else {"“": 1.0, "”": -1.0}[piece[last]]
        mixer.in_proj.weight[0] = 0
        mixer.in_proj.weight[0, 0] = 1
        cell.candidate.weight[0], cell.candidate.weight[:, 0] = 0, 0
        cell.candidate.weight[0, 0] = 5
        cell.threshold.weight.zero_()
        cell.threshold.bias.fill_(0.5)
        cell.s0[0] = -1
    return model


def test_a_unit_that_latches_quotation_marks_is_found():
    tokenizer = train_tokenizer([TEXT], vocab_size=280)
    spans = token_spans(tokenizer, TEXT, 2000)
    found = {each.feature.name: each for each in align(record(latching_model(tokenizer, spans), spans.ids), spans)}
    quotation = found["in quotation"]
    assert quotation.best[0] == 0
    assert quotation.r[0] == pytest.approx(1)
    assert abs(quotation.r[quotation.best[1]]) < 0.7
    assert quotation.chance < 0.7
    assert quotation.p == 1 / 200
    assert "paragraph start" in found
    assert found["position in document"].p is None  # one document says nothing


def test_features_that_are_constant_are_left_out(by_hand, letters):
    found = align(by_hand([[1, -1, 1, 1]], [[1, 1, 0, 0]]), letters("abc"))
    names = [each.feature.name for each in found]
    assert "in quotation" not in names
    assert "position in document" in names
    (one,) = [each for each in found if each.feature.name == "position in document"]
    assert one.r[0] == pytest.approx(np.corrcoef([-1, 1, 1], [0, 1, 2])[0, 1])
    assert align(by_hand([[1, -1]], [[1, 1]]), letters("a")) == []
