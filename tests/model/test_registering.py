"""Cells that live outside the package."""

import pytest
import torch
from models import make_ids, make_model
from torch import nn

from hybridlm import Cell, HybridLMConfig, HybridLMForCausalLM, register_cell
from hybridlm.model.mixers_hybridlm import CELLS, MIXERS
from hybridlm.ops import linear_scan


class SumCell(Cell):
    """A half of the past is kept."""

    def __init__(self, config):
        super().__init__(config)
        self.candidate = nn.Linear(self.width, self.width)

    def forward(self, x, state, mask, reset):
        s, _ = linear_scan(torch.full_like(x, 0.5), self.candidate(x).float(), state["s"], reset=reset, mask=mask)
        return s.to(x.dtype), {"s": s}


@pytest.fixture
def halving():
    """`halving` is a mixer, until the test is over."""
    before = dict(CELLS), dict(MIXERS)
    register_cell("halving", SumCell)
    yield "halving"
    for registry, was in zip((CELLS, MIXERS), before, strict=True):
        registry.clear()
        registry.update(was)


def test_it_is_a_mixer_like_any_other(halving, tmp_path):
    model = make_model("halving bmru halving+rglru")
    ids = make_ids(2, 20)
    with torch.no_grad():
        whole = model(ids).logits
        begun = model(ids[:, :13], use_cache=True)
        rest = model(ids[:, 13:], past_key_values=begun.past_key_values).logits
    torch.testing.assert_close(rest, whole[:, 13:], rtol=0, atol=1e-5)
    assert "1.s" in begun.past_key_values.layers[2].states  # of rglru, beside it
    model.save_pretrained(tmp_path)
    loaded = HybridLMForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(ids).logits, whole)


def test_without_it_the_name_is_unknown(halving, tmp_path):
    make_model("halving").save_pretrained(tmp_path)
    del CELLS["halving"], MIXERS["halving"]
    with pytest.raises(ValueError, match=r"unknown mixer 'halving'.*register_cell"):
        HybridLMForCausalLM.from_pretrained(tmp_path)


def test_the_same_name_again_replaces_the_class(halving):
    class Other(SumCell):
        """The module, reloaded."""

    register_cell("halving", Other)
    assert isinstance(make_model("halving").model.layers[0].mixer.cells[0], Other)


@pytest.mark.parametrize("name", ["", "2x", "a b", "a+b", "über", "_x", None, 3])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(ValueError, match=r"name=.*must be ASCII letters"):
        register_cell(name, SumCell)


@pytest.mark.parametrize("name", ["bmru", "attention", "mamba2"])
def test_our_own_names_stay_ours(name):
    before = MIXERS[name]
    with pytest.raises(ValueError, match=f"name='{name}': a mixer of hybridlm"):
        register_cell(name, SumCell)
    assert MIXERS[name] is before


@pytest.mark.parametrize("cell", [nn.Linear, SumCell(HybridLMConfig(pattern="lru", hidden_size=8)), None])
def test_what_is_no_cell_is_refused(cell):
    with pytest.raises(ValueError, match=r"inherits from hybridlm\.Cell"):
        register_cell("halving", cell)
    assert "halving" not in MIXERS


def test_its_code_does_not_travel_and_nothing_is_written_that_could_not_be_loaded(halving, tmp_path):
    model = make_model("rglru halving")
    model.carry_code()
    with pytest.raises(ValueError, match="halving was registered in this process"):
        model.save_pretrained(tmp_path / "there")
    assert not [path for path in (tmp_path / "there").rglob("*") if path.suffix in (".py", ".safetensors", ".json")]
    model.carry_code(False)
    model.save_pretrained(tmp_path / "there")
