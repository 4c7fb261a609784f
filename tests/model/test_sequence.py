"""Sequences split over processes: logits and gradients of one process, whatever the cell, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from launching import launch
from models import make_ids, make_model
from sequence_parts import PATTERNS

from hybridlm import HybridLMForSequenceClassification
from hybridlm.model import block_hybridlm
from hybridlm.model.cell_hybridlm import Cell
from hybridlm.model.mixers_hybridlm import MIXERS
from hybridlm.model.parts_hybridlm import SPLITTABLE
from hybridlm.model.sequence_hybridlm import SequenceRanks
from hybridlm.ops.dispatch import using

TOLERANCE = {"float64": 1e-11, "float32": 2e-5}
"""Rounding of sums that are taken in another order; the losses here sum over up to 280 tokens."""


@pytest.fixture(scope="module", params=[2, 4])
def parts(request, tmp_path_factory) -> list[dict]:
    """What each of so many processes found."""
    folder = tmp_path_factory.mktemp("parts")
    done = launch([Path(__file__).with_name("sequence_parts.py"), folder], ranks=request.param)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [json.loads((folder / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in range(request.param)]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_logits_and_gradients_are_those_of_one_process(parts, pattern):
    for rank, found in enumerate(parts):
        cases = [case for case in found["models"] if case["pattern"] == pattern]
        assert len(cases) >= (5 if len(parts) > 2 else 1)
        for case in cases:
            wrong = {name: far for name, far in case["apart"].items() if not far <= TOLERANCE[case["dtype"]]}
            assert not wrong, (rank, {name: value for name, value in case.items() if name != "apart"}, wrong)


def test_every_mixer_is_split_or_refused():
    assert set(MIXERS) - set(SPLITTABLE) == {"attention", "sliding_attention", "gru", "lstm"}


def test_bistable_states_are_bit_equal(parts):
    bits = [value for found in parts for name, value in found["scans"].items() if name.startswith("bits")]
    assert len(bits) == 4 * len(parts)
    assert all(bits)


def test_a_gradient_of_the_last_state_goes_back_through_all_parts(parts):
    for found in parts:
        assert max(found["scans"][name] for name in ("through a", "through b", "start")) < 1e-12


def test_a_long_rotation_keeps_its_phase(parts):
    """lambda^50,000 in fp32 by squares would be off by as much as the scan itself; it adds nothing to that."""
    for found in parts:
        assert found["long"]["part"] < 1.1 * found["long"]["alone"] + 1e-7


def test_a_part_under_autocast(parts):
    for found in parts:
        assert found["half"]["logits"] < 0.02


class Two(SequenceRanks):
    """The first of two processes, of which there is one."""

    def __init__(self):
        self.group, self.rank, self.size, self.carried = None, 0, 2, 0

    def gather(self, x):
        return torch.stack([x, x])


@pytest.mark.parametrize(
    ("pattern", "layers"),
    [
        ("attention", "layer 0: attention"),
        ("rglru sliding_attention", "layer 1: sliding_attention"),
        ("lru gru+bmru lstm", "layer 1: gru, layer 2: lstm"),
    ],
)
def test_mixers_that_need_the_whole_sequence_are_refused(pattern, layers):
    model = make_model(pattern)
    with pytest.raises(ValueError, match=f"{layers} needs the whole sequence.* Use mixers .*lru, rglru"):
        model.split_sequence(Two())
    model(make_ids(1, 4))  # as it was
    model.split_sequence(None)


def test_what_a_part_cannot_do_is_refused():
    model, ids = make_model("rglru bmru"), make_ids(1, 8)
    model.split_sequence(Two())
    given = {"input_ids": ids, "use_cache": False}
    hidden = torch.ones(1, 8)
    hidden[0, 2] = 0
    for options, said in (
        ({"use_cache": True}, "use_cache=False"),
        ({"labels": ids}, "shift_labels"),
        ({"attention_mask": hidden}, "attention_mask must not hide tokens"),
        ({"input_ids": ids[:, :2]}, "a part of 2 tokens is shorter than the 3 inputs"),
    ):
        with pytest.raises(ValueError, match=f"split over 2 processes.*{said}|{said}"):
            model(**given | options)
    with pytest.raises(ValueError, match=r"Call split_sequence\(None\) first"):
        model.generate(ids, max_new_tokens=2)
    with using("reference"), pytest.raises(ValueError, match="path='reference': the loop over time runs in one"):
        model(**given)
    assert model(**given, attention_mask=torch.ones(1, 8), logits_to_keep=1).logits.shape == (1, 1, 61)
    model.split_sequence(None)
    model.generate(ids, max_new_tokens=2)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_model_passes_its_states_too():
    """The mixers of a part are left out of the graph. The backend is eager: what is traced is in question."""
    model, ids = make_model("rglru bmru").double(), make_ids(1, 8)
    with torch.no_grad():
        alone = model(ids, use_cache=False).logits
        ranks = Two()
        ranks.rank = 1  # behind a part with the same tokens
        model.split_sequence(ranks)
        second = model(ids, use_cache=False).logits
        compiled = torch.compile(model, backend="eager")(ids, use_cache=False).logits
    torch.testing.assert_close(compiled, second, rtol=0, atol=1e-12)
    assert not torch.allclose(second, alone)


def test_a_head_that_reads_whole_texts_is_refused():
    model = HybridLMForSequenceClassification(make_model("rglru").config)
    with pytest.raises(ValueError, match="HybridLMForSequenceClassification reads whole sequences"):
        model.split_sequence(Two())


def test_a_cell_that_keeps_its_state_to_itself_is_noticed(monkeypatch):
    class Counter(Cell):
        def forward(self, x, state, mask, reset):
            s = state["s"].unsqueeze(1) + x.cumsum(1)
            return s, {"s": s}

    monkeypatch.setitem(block_hybridlm.CELLS, "cmru", Counter)
    model = make_model("rglru cmru")
    model.split_sequence(Two())
    with pytest.raises(ValueError, match="Counter did not pass its state on to the next process"):
        model(make_ids(1, 8), use_cache=False)


def test_a_copy_shares_with_the_same_processes():
    from copy import deepcopy

    model = make_model("bmru")
    model.split_sequence(Two())
    assert deepcopy(model).sequence_ranks is model.sequence_ranks
