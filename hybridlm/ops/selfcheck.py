"""A path is tried once per process on a tiny input before it is used: better slow than wrong."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from threading import local
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from hybridlm.ops import reference

Pair = tuple[list[Tensor], list[Tensor]]
"""What the kernels gave, and what is right."""

_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2**-9, torch.bfloat16: 2**-6}
"""Of the largest number: two roundings of the storage dtype, and the order of the sums."""


def disagreement(kernels: dict[str, Any], device: str, dtype: torch.dtype) -> str | None:
    """What the six functions of a path get wrong against the reference's outputs and gradients; None: nothing.

    In a thread of its own, since kernels are first called from inside an operator, where autograd does not record.
    """
    with ThreadPoolExecutor(1) as other:
        return other.submit(_compare, kernels, device, dtype).result()


def fused_disagreement(dtype: torch.dtype) -> str | None:
    """The same of the kernels between the matrix products, against the model's PyTorch forms."""
    checks = {"norm": _norm, "gate": _gate, "rglru_gates": _rglru_gates, "convolution": _convolution}
    bound = {name: partial(check, dtype) for name, check in checks.items()}
    with ThreadPoolExecutor(1, initializer=_begin_checking) as other:
        return other.submit(_first_wrong, bound, dtype).result()


_thread = local()


def _begin_checking() -> None:
    _thread.checks = True


def checking() -> bool:
    """Whether this thread compares kernels with the PyTorch forms, which must not take the kernels then."""
    return getattr(_thread, "checks", False)


def index_disagreement(kernels: Any, device: str, dtype: torch.dtype) -> str | None:
    """The same of the two functions of a module for finite-state heads."""
    with ThreadPoolExecutor(1) as other:
        return other.submit(_first_wrong, {"index_scan": partial(_index, kernels, device, dtype)}, dtype).result()


def _compare(kernels: dict[str, Any], device: str, dtype: torch.dtype) -> str | None:
    checks = {"linear_scan": _linear, "lru_scan": _lru, "memory_scan": _memory}
    return _first_wrong({name: partial(check, kernels, device, dtype) for name, check in checks.items()}, dtype)


def _first_wrong(checks: dict[str, Callable[[], Pair]], dtype: torch.dtype, chain: int = 1) -> str | None:
    """chain: operations behind one another, each of which rounds."""
    for name, check in checks.items():
        try:
            got, want = check()
        except Exception as error:  # a launch that fails, a missing instruction: whatever it is, the slow path works
            return f"{name} failed with {type(error).__name__}: {error}"
        for x, y in zip(got, want, strict=True):
            worst = (x.double() - y.double()).abs().max().item()
            if not worst <= chain * _TOLERANCE[dtype] * max(1.0, y.abs().max().item()):
                return f"{name} is off by {worst:.1e} in {dtype}"
    return None


ROWS, STEPS, WIDTH = 2, 7, 5
LAYER = 8
"""Operations of a layer from its input to its output."""


def _wave(phase: float, *shape: int) -> Tensor:
    """Numbers in [-1, 1] without touching the random state."""
    return torch.sin(torch.arange(float(torch.Size(shape).numel())) * 1.7 + phase).reshape(shape)


def _inputs(device: str, dtype: torch.dtype, count: int) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
    """(B, T, N) in the storage dtype, (B, N) in fp32 for states and what arrives at them, flags."""
    kind = {"device": device, "dtype": dtype}
    wide = {"device": device, "dtype": torch.float64 if dtype == torch.float64 else torch.float32}
    long = [_wave(0.1 + 0.3 * i, ROWS, STEPS, WIDTH).to(**kind) for i in range(count)]
    states = [_wave(2 + 0.3 * i, ROWS, WIDTH).to(**wide) for i in range(count)]
    flags = {"reset": torch.zeros(ROWS, STEPS, dtype=torch.bool), "mask": torch.ones(ROWS, STEPS, dtype=torch.bool)}
    flags["reset"][0, 3] = flags["reset"][1, 2] = True
    flags["mask"][1, 2] = flags["mask"][1, 5] = False
    return long, states, {name: flag.to(device) for name, flag in flags.items()}


def _gradients(outputs: list[Tensor], arriving: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(outputs, leaves, arriving))


def _linear(kernels: dict[str, Any], device: str, dtype: torch.dtype) -> Pair:
    (a, b, grad), (start, grad_final, _), flags = _inputs(device, dtype, 3)
    order = flags["reset"], flags["mask"]
    leaves = [x.clone().requires_grad_() for x in (a, b, start)]
    want = list(reference.linear_scan(*leaves, **flags))
    got = list(kernels["linear_forward"](a, b, start, *order))
    got += kernels["linear_backward"](grad, grad_final, a, got[0], start, *order)
    return got, want + _gradients(want, [grad, grad_final], leaves)


def _lru(kernels: dict[str, Any], device: str, dtype: torch.dtype) -> Pair:
    (b_re, b_im, *grads), (s_re, s_im, *finals), flags = _inputs(device, dtype, 4)
    lam = [s_re[0] * 0.6, s_im[1] * 0.6]
    order = flags["reset"], flags["mask"]
    leaves = [x.clone().requires_grad_() for x in (*lam, b_re, b_im, s_re, s_im)]
    states, final = reference.lru_scan((leaves[0], leaves[1]), (leaves[2], leaves[3]), (leaves[4], leaves[5]), **flags)
    want = [*states, *final]
    got = list(kernels["lru_forward"](*lam, b_re, b_im, s_re, s_im, *order))
    got += kernels["lru_backward"](*grads, *finals, *lam, *got[:2], s_re, s_im, *order)
    return got, want + _gradients(want, [*grads, *finals], leaves)


def _memory(kernels: dict[str, Any], device: str, dtype: torch.dtype) -> Pair:
    (c, beta, grad), (start, grad_final, _), flags = _inputs(device, dtype, 3)
    start, fresh, beta = start.sign(), grad_final[0].sign(), beta.abs()
    epsilon, slope = 0.25, 1.5  # a power of two: every state in the scan is exact
    leaves = [x.clone().requires_grad_() for x in (c, beta, start, fresh)]
    options = {"epsilon": epsilon, "slope": slope, "reset_state": leaves[3], **flags}
    want = list(reference.memory_scan(*leaves[:3], **options))
    got = list(kernels["memory_forward"](c, beta, start, epsilon, flags["reset"], fresh, flags["mask"]))
    order = epsilon, slope, flags["reset"], fresh, flags["mask"]
    got += kernels["memory_backward"](grad, grad_final, c, beta, got[0], start, *order)
    return got, want + _gradients(want, [grad, grad_final], leaves)


def _index(kernels: Any, device: str, dtype: torch.dtype) -> Pair:
    heads, n = 3, WIDTH
    _, (bias, values, grad), flags = _inputs(device, dtype, 3)
    theta = _wave(0.4, ROWS, STEPS, heads, n, n).to(device=device, dtype=dtype)
    bias, values = (_wave(phase, heads, n, size).to(bias) for phase, size in ((1.3, n), (2.1, 2)))
    noise, grad = (_wave(phase, ROWS, STEPS, heads, *size).to(bias) for phase, size in ((5.0, (n, n)), (7.0, (2,))))
    start = torch.arange(ROWS * heads, device=device).reshape(ROWS, heads).remainder(n).to(torch.uint8)
    theta[:, ::2, :, :, 1] = theta[:, ::2, :, :, 3]
    bias[..., 1], noise[..., 1] = bias[..., 3], noise[..., 3]  # equal destinations, of which the first wins
    order = start, 0.7, flags["reset"], flags["mask"]
    leaves = [x.clone().requires_grad_() for x in (theta, bias, values)]
    want = list(reference.index_values(leaves[0], leaves[1], noise, leaves[2], *order))
    got = list(kernels.index_forward(theta, bias, noise, values, *order, True))
    short = kernels.index_forward(theta, bias, noise, values, *order, False)[:2]
    back = kernels.index_backward(grad, got[2], got[3], got[1], values, *order, dtype)
    return [*got[:2], *short, *back], [*want, *want, *_gradients(want[:1], [grad], leaves)]


def _both(kernel: Callable[..., Any], plain: Callable[..., Any], inputs: list[Tensor], grads: list[Tensor]) -> Pair:
    """Outputs and gradients of two forms of one operation."""
    results = []
    for form in (kernel, plain):
        leaves = [x.clone().requires_grad_() for x in inputs]
        outputs = form(*leaves)
        outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
        arriving = [g.to(out.dtype) for g, out in zip(grads, outputs, strict=False)]
        results.append(outputs + _gradients(outputs, arriving, leaves))
    return results[0], results[1]


def _norm(dtype: torch.dtype) -> Pair:
    (x, grad), (weight, _), _ = _inputs("cpu", dtype, 2)
    plain = partial(torch.nn.functional.rms_norm, normalized_shape=(WIDTH,), eps=1e-6)
    return _both(
        lambda x, w: fused().norm(x, w, 1e-6), lambda x, w: plain(x, weight=w), [x, weight[0].to(dtype)], [grad]
    )


def _gate(dtype: torch.dtype) -> Pair:
    (g, u, grad), _, _ = _inputs("cpu", dtype, 3)
    return _both(fused().gate, forms().silu_gate, [g, u], [grad])


def _rglru_gates(dtype: torch.dtype) -> Pair:
    (x, *_), (bias, softplus, *grads), _ = _inputs("cpu", dtype, 4)
    pre = _wave(1, 1, ROWS * STEPS, 2 * WIDTH).to(dtype)
    grads = [_wave(phase, ROWS, STEPS, WIDTH) for phase in (3.0, 4.0)]
    inputs = [pre, bias.reshape(1, -1), x, softplus[0].abs() / 10]
    return _both(fused().rglru, forms().rglru_gates, inputs, grads)


def _convolution(dtype: torch.dtype) -> Pair:
    (u, past, grad), (bias, *_), flags = _inputs("cpu", dtype, 3)
    past, weight = past[:, :3], _wave(5, WIDTH, 4).to(dtype)

    def plain(u: Tensor, past: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with torch.no_grad():
            conv = import_module("hybridlm.model.conv_hybridlm").ShortConv(WIDTH, 4)
        del conv.weight, conv.bias
        conv.weight, conv.bias = weight, bias
        # Not called as a module: hooks of all modules, such as FlopCounterMode's, hold for every thread and break this
        # backward.
        return conv.forward(u, past, None, flags["reset"])[0]

    def kernel(u: Tensor, past: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return fused().conv(u, past, weight, bias, flags["reset"])

    return _both(kernel, plain, [u, past, weight, bias[0].to(dtype)], [grad])


def decode_disagreement(dtype: torch.dtype) -> str | None:
    """The same of the kernels of a decode step, against the model's layers."""
    checks = {
        f"a step of {pattern}": partial(_decode, dtype, pattern) for pattern in ("rglru+bmru", "lru+mingru", "nfsm")
    }
    with ThreadPoolExecutor(1, initializer=_begin_checking) as other:
        return other.submit(_first_wrong, checks, dtype, LAYER).result()


@torch.no_grad()
def _decode(dtype: torch.dtype, pattern: str) -> Pair:
    """A step of a layer behind a few tokens: what it gives, and what its cache holds then."""
    layer = _layer(pattern, dtype)
    cache_type = import_module("hybridlm.model.cache_hybridlm").HybridRecurrentLayer
    decode_step = import_module("hybridlm.model.decode_hybridlm").DecodeStep
    program = import_module("hybridlm.ops.cpu.decode").Program
    text, x = _wave(1, ROWS, 3, WIDTH).to(dtype), _wave(2, ROWS, 1, WIDTH).to(dtype)
    results = []
    for kernels in (True, False):
        cache = SimpleNamespace(layers=[cache_type()])
        layer(text, past_key_values=cache)
        if kernels:
            step, y = decode_step(program(ROWS, dtype), dtype), torch.empty_like(x)
            layer.record(step, x.data_ptr(), y, cache.layers[0])
            step.ops.run()
        else:
            y = layer(x, past_key_values=cache)
        results.append([y, cache.layers[0].conv, *cache.layers[0].states.values()])
    return results[0], results[1]


def _layer(pattern: str, dtype: torch.dtype) -> Any:
    """A layer whose weights are waves: making it draws no random numbers."""
    config = import_module("hybridlm.model.configuration_hybridlm").HybridLMConfig(
        pattern=pattern, hidden_size=WIDTH, state_size=2 * WIDTH, intermediate_size=17, num_attention_heads=2,
        num_key_value_heads=1, nfsm_heads=2, nfsm_states=3,
    )  # fmt: skip
    with torch.device("meta"):
        layer = import_module("hybridlm.model.block_hybridlm").HybridLMDecoderLayer(config, pattern, 0)
    layer = layer.to(dtype).to_empty(device="cpu").eval()
    for phase, tensor in enumerate([*layer.parameters(), *layer.buffers()]):
        tensor.copy_(_wave(2.8 + phase, *tensor.shape))  # its memory unit is far from its threshold
    return layer


def fused() -> Any:
    return import_module("hybridlm.ops.fused")


def forms() -> Any:
    """The PyTorch forms: see `checking`."""
    return import_module("hybridlm.model.fused_hybridlm")
