"""The scans as operators of torch: registered rightly, opaque to compilation, one graph for every length."""

import pytest
import torch
import torch._dynamo.testing
from cases import CASES, flags

from hybridlm import HybridLMConfig, HybridLMForCausalLM, ops
from hybridlm.ops import registered


def case_of(name, length=9, dtype=torch.float32, grad=True):
    generator = torch.Generator().manual_seed(0)
    inputs = CASES[name][0](2, length, 3, generator, dtype, True)
    return [x.requires_grad_(grad) for x in inputs], list(flags(2, length, True, True, generator).values())


def arguments(name, grad=True):
    """Of the forward operator, as it is registered."""
    inputs, (reset, mask) = case_of(name, grad=grad)
    if not name.startswith("memory"):
        return [*inputs, reset, mask, ""]
    c, beta, start, fresh = inputs
    return [c, beta, start, float(name.split("_")[1]), 1.3, reset, fresh, mask, ""]


@pytest.mark.parametrize("name", CASES)
def test_opcheck_of_the_forward(name):
    operator = getattr(registered, f"{name.split('_')[0]}_forward")
    torch.library.opcheck(operator, arguments(name))


@pytest.mark.parametrize("name", CASES)
def test_opcheck_of_the_backward(name):
    """Which has no gradient of its own."""
    kind = name.split("_")[0]
    args = arguments(name, grad=False)
    outputs = getattr(registered, f"{kind}_forward")(*args)
    grads = [torch.ones_like(x) for x in outputs]
    if kind == "linear":
        a, _, *rest = args
        args = [*grads, a, outputs[0], *rest]
    elif kind == "lru":
        args = [*grads, *args[:2], *outputs[:2], *args[4:]]
    else:
        c, beta, *rest = args
        args = [*grads, c, beta, outputs[0], *rest]
    torch.library.opcheck(getattr(registered, f"{kind}_backward"), args)


@pytest.mark.parametrize("name", CASES)
def test_a_second_derivative_is_refused_and_not_wrong(name):
    inputs, _ = case_of(name)
    out = CASES[name][1](ops, inputs)[0]
    (grad,) = torch.autograd.grad(out.square().sum(), inputs[1], create_graph=True)
    with pytest.raises(RuntimeError, match=f"{name.split('_')[0]}_scan: second derivatives .* path='reference'"):
        torch.autograd.grad(grad.sum(), inputs[1])


@pytest.mark.parametrize("name", CASES)
def test_inputs_of_two_dtypes_meet_in_the_wider(name):
    inputs, _ = case_of(name, grad=False)
    first = 2 if name == "lru" else 0  # the first of the two (B, T, N)
    mixed = [x.bfloat16() if i == first + 1 else x for i, x in enumerate(inputs)]
    exact = [x.float() for x in mixed]
    for got, want in zip(CASES[name][1](ops, mixed), CASES[name][1](ops, exact), strict=True):
        assert torch.equal(got, want.to(got.dtype))


def compiled_lengths(pattern, lengths):
    """Losses and gradients of a model, eager and compiled, at several lengths; how often it was compiled."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    config = HybridLMConfig(pattern=pattern, vocab_size=50, hidden_size=16, num_attention_heads=2, use_cache=False)
    model = HybridLMForCausalLM(config)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for length in lengths:
        tokens = torch.randint(50, (2, length))
        losses, grads = [], []
        for run in (model, compiled):
            model.zero_grad()
            loss = run(input_ids=tokens, labels=tokens).loss
            loss.backward()
            losses.append(loss.item())
            grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)
        assert (grads[0] - grads[1]).abs().max() < 1e-5
    return counter.frame_count


# dynamo makes an object of every autograd function that it traces, which autograd itself advises against.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("pattern", ["rglru", "bmru", "lru", "nfsm"])
def test_one_graph_serves_every_length(pattern):
    """The first is compiled for its length, the second for any."""
    assert compiled_lengths(pattern, [33, 40, 47, 64, 100]) <= 2
