"""Every mode works with hybridlm's models, a broken model is found out, and the table lands where it belongs."""

import pytest
import torch
from transformers import DynamicCache

from hybridlm import HybridLMForCausalLM
from hybridlm.evaluation import modes_table
from hybridlm.evaluation.modes import MODES
from hybridlm.evaluation.modes_models import OTHERS, OURS, build
from hybridlm.evaluation.modes_trial import Outcome, Subject, Trial, check_sensitive, deviation, judge, try_mode
from hybridlm.model import block_hybridlm
from hybridlm.model.cache_hybridlm import HybridRecurrentLayer, HybridStaticRecurrentLayer

NAMES = list(OURS)


@pytest.fixture(scope="module")
def pairs():
    return {name: (build(make), build(make, seed=1)) for name, make in OURS.items()}


# torch's own tracer makes an instance of an autograd Function, and warns of it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_every_mode_works(pairs, name, mode):
    assert try_mode(MODES[mode], *pairs[name]) == Outcome("works")


@pytest.mark.parametrize("name", NAMES)
def test_the_models_show_what_they_remember(pairs, name):
    check_sensitive(pairs[name][0])
    deaf = build(OURS[name])
    with torch.no_grad():
        for parameter in deaf.model.layers.parameters():
            parameter.zero_()
    with pytest.raises(RuntimeError, match="the first token moves the last logits by 0"):
        check_sensitive(deaf)


def test_the_other_models_can_be_built():
    for make in OTHERS.values():
        assert build(make).config.vocab_size == 61


def nothing(*_):
    return None


def write_zeros(layer, states, conv):
    real_write(layer, {name: torch.zeros_like(state) for name, state in states.items()}, conv)


def write_bfloat16(layer, states, conv):
    real_write(layer, {name: state.bfloat16().float() for name, state in states.items()}, conv)


def other_way_round(mask, _length):
    return None if mask is None else mask == 0


def count_in_python(layer, tokens):
    """A number that a graph holds as a constant."""
    real_count(layer, tokens)
    layer.calls = getattr(layer, "calls", 0) + 1


def all_logits(model, *given, logits_to_keep=0, **options):
    return real_forward(model, *given, **options)


def other_where_exported(g, u):
    return real_gate(g, u) * (1.1 if torch.compiler.is_exporting() else 1)


MODEL, LAYER = "hybridlm.model.modeling_hybridlm", "hybridlm.model.cache_hybridlm.HybridRecurrentLayer"
HEAD = f"{MODEL}.HybridLMForCausalLM"
ZEROS = {f"{LAYER}._write": write_zeros}
real_write, real_count = HybridRecurrentLayer._write, HybridStaticRecurrentLayer._count
real_forward, real_gate = HybridLMForCausalLM.forward, block_hybridlm.silu_gate
BREAKS = {
    "greedy, cached": ZEROS,
    # Either of the two alone keeps padding out: the positions of a padded row begin a document at its first token.
    "left padding: a row in a batch as alone": {
        "hybridlm.model.cache_hybridlm.padding_mask": nothing,
        f"{MODEL}.document_starts": nothing,
    },
    "right padding, one forward": {f"{MODEL}.padding_mask": other_way_round},
    "right padding, then on with the cache": {f"{MODEL}.padding_mask": nothing},
    "beam search, cached": {f"{LAYER}.reorder_cache": nothing},
    "several tokens behind a cache": ZEROS,
    "chunked prefill": ZEROS,
    "packed documents (`DataCollatorWithFlattening`)": {f"{MODEL}.document_starts": nothing},
    "prompt lookup": {f"{LAYER}._restore": nothing},
    "assisted decoding": {f"{LAYER}._restore": nothing},
    "static cache": ZEROS,
    "static cache, compiled step, one graph": {
        "hybridlm.model.cache_hybridlm.HybridStaticRecurrentLayer._count": count_in_python
    },
    "`generate` behind a cache, new tokens alone": ZEROS,
    "cache saved, loaded, continued": {f"{HEAD}.load_cache": lambda model, _: DynamicCache(config=model.config)},
    "cache forked into a batch": {f"{HEAD}.fork_cache": lambda model, *_: DynamicCache(config=model.config)},
    "`generate` from `inputs_embeds`": ZEROS,
    "`logits_to_keep`": {f"{HEAD}.forward": all_logits},
    "gradient checkpointing": {f"{HEAD}.activation_checkpointing_enable": nothing},
    "`torch.export` of a forward": {"hybridlm.model.block_hybridlm.silu_gate": other_where_exported},
    "bf16, cached": ZEROS,
}


SAYS = {
    "static cache, compiled step, one graph": "2 graphs for 6 steps",
    "gradient checkpointing": "2 runs of 2 layers: nothing is computed again in the backward",
}


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("mode", MODES)
def test_what_is_broken_is_not_called_working(pairs, mode, monkeypatch):
    for place, broken in BREAKS[mode].items():
        monkeypatch.setattr(place, broken)
    outcome = try_mode(MODES[mode], *pairs[NAMES[0]])
    assert outcome.verdict == "wrong", outcome
    assert SAYS.get(mode, "") in outcome.detail


def test_states_are_not_rounded_in_bfloat16(pairs, monkeypatch):
    """Which the table would let pass, since other models keep theirs so; ours are as without a cache."""

    def share(name):
        trial = MODES["bf16, cached"](Subject(*pairs[name]))
        return deviation(trial.want[0], trial.attempt()[0]) / trial.tolerance

    assert all(share(name) < 0.1 for name in NAMES)
    monkeypatch.setattr(f"{LAYER}._write", write_bfloat16)
    assert all(share(name) > 0.2 for name in NAMES)


def test_verdicts():
    logits, tokens = torch.tensor([[1.0, -4.0]]), torch.tensor([[3, 5, 6]])

    def verdict(want, got, **options):
        return judge(Trial((want,), lambda: (got,), **options), (got,))

    assert verdict(logits, logits + 0.003) == Outcome("works")
    assert verdict(logits, logits + 0.4) == Outcome("wrong", "off by 0.1 of the largest value")
    assert verdict(logits, logits + 0.4, tolerance=0.2) == Outcome("works")
    assert verdict(logits, logits * float("nan")).verdict == "wrong"
    assert verdict(tokens, tokens) == Outcome("works")
    assert verdict(tokens, tokens + torch.tensor([0, 1, 1])) == Outcome("wrong", "2 of 3 tokens differ")
    assert verdict(tokens, tokens[:, :2]) == Outcome("wrong", "shape (1, 2) instead of (1, 3)")


def test_an_exception_is_a_refusal(pairs):
    def mode(subject):
        return Trial(subject.expected(subject.ids()), attempt)

    def attempt():
        raise ValueError("\n  not with me\nsecond line")

    assert try_mode(mode, *pairs[NAMES[0]]) == Outcome("refused", "ValueError: not with me")


@pytest.fixture
def text():
    outcomes = {label: Outcome("works") for label in MODES}
    odd = outcomes | {
        "greedy, cached": Outcome("wrong", "2 of 3 tokens differ"),
        "prompt lookup": Outcome("refused", "E: no|_"),
    }
    return modes_table.render({"one": outcomes, "two": odd, "three": odd})


def test_the_table(text):
    lines = text.splitlines()
    assert lines[0] == "| | one | two | three |"
    assert lines[2] == "| greedy, cached | works | wrong <sup>1</sup> | wrong <sup>1</sup> |"
    assert "| prompt lookup | works | refused <sup>2</sup> | refused <sup>2</sup> |" in lines
    assert lines[len(MODES) + 3 :][:2] == ["1. 2 of 3 tokens differ", r"2. E: no\|\_"]
    assert f"torch {torch.__version__}" in lines[-1]
