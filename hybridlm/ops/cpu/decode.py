"""A decode step of a layer as one call of compiled code: its operations are recorded, then run one after another.

A value is the address of (B, n) numbers in the storage dtype. Weights are tensors of that dtype, states (B, n) in the
dtype of the recurrence (bytes of finite-state heads), moved on in place; all of them contiguous. Nothing is changed
before `run`.
"""

import struct
import threading

import torch
from torch import Tensor

from hybridlm.ops.cpu.library import DTYPES, SETS, library

_NAMES = (
    "norm", "product", "heads", "conv", "gate", "add", "add_scaled", "rglru", "mingru", "memory", "lru", "index",
)  # fmt: skip
OPERATIONS = {name: number for number, name in enumerate(_NAMES)}
"""As decode.h numbers them."""

_OPERATION = struct.Struct("2i 2q d 8q")
"""`Operation` of decode.h."""
_ALIGNED = 64

Value = int


class _Room(threading.local):
    """Memory for the values of a step, kept by its thread from step to step."""

    memory: Tensor | None = None


_room = _Room()


class Program:
    """The operations of a decode step over `rows` tokens, one of each row."""

    def __init__(self, rows: int, dtype: torch.dtype, isa: str | None = None):
        self.rows, self.dtype = rows, dtype
        self.size = torch.finfo(dtype).bits // 8
        self._isa = library().best if isa is None else SETS.index(isa)
        self._operations: list[bytes] = []
        self._kept: list[Tensor] = []
        self._memory = _room.memory
        self._next, self._end = 0, 0
        if self._memory is not None:
            self._next = self._memory.data_ptr()
            self._end = self._next + self._memory.numel()

    def norm(self, x: Value, weight: Tensor, epsilon: float) -> Value:
        """x weight / sqrt(mean(x^2) + epsilon)."""
        n = weight.shape[0]
        return self._add("norm", n, (x, weight.data_ptr()), n, value=epsilon)

    def product(self, x: Value, weight: Tensor, bias: Tensor | None = None) -> Value:
        """weight (n, k) x + bias (n,)."""
        n, k = weight.shape
        return self._add("product", n, (x, weight.data_ptr(), 0 if bias is None else bias.data_ptr()), n, k)

    def heads(self, x: Value, weight: Tensor) -> Value:
        """x as (B, H, k) times weight (H, k, n), as (B, H n)."""
        heads, k, n = weight.shape
        return self._add("heads", heads * n, (x, weight.data_ptr()), n, k, parts=heads)

    def conv(self, u: Value, weight: Tensor, bias: Tensor, window: Tensor) -> Value:
        """The convolution, weight (n, K), behind window (B, K-1, n), which moves on by u."""
        n, taps = weight.shape
        return self._add("conv", n, (u, weight.data_ptr(), bias.data_ptr(), window.data_ptr()), n, parts=taps)

    def gate(self, g: Value, u: Value, n: int) -> Value:
        """silu(g) u."""
        return self._add("gate", n, (g, u), n)

    def add(self, x: Value, y: Value, n: int, to: Tensor | None = None) -> Value:
        """x + y; into the memory of `to`, where it is given."""
        return self._add("add", n, (x, y), n, to=to)

    def add_scaled(self, x: Value, y: Value, weight: Tensor) -> Value:
        """x + weight y; weight (n,)."""
        n = weight.shape[0]
        return self._add("add_scaled", n, (x, y, weight.data_ptr()), n)

    def rglru(self, pre: Value, bias: Tensor, x: Value, softplus: Tensor, s: Tensor) -> Value:
        """s of the real-gated linear recurrent unit; pre and bias (H, 2 n / H) as `hybridlm.ops.cpu.fused` has them;
        softplus (n,) in the dtype of the recurrence."""
        n = s.shape[1]
        self._kept.append(softplus)
        places = pre, bias.data_ptr(), x, softplus.data_ptr(), s.data_ptr()
        return self._add("rglru", n, places, n, parts=bias.shape[0])

    def mingru(self, gate: Value, candidate: Value, s: Tensor) -> Value:
        """s = (1 - z) s + z candidate, z = sigmoid(gate)."""
        n = s.shape[1]
        return self._add("mingru", n, (gate, candidate, s.data_ptr()), n)

    def memory(self, c: Value, threshold: Value, alpha: Tensor, s: Tensor, epsilon: float) -> Value:
        """alpha s of the memory recurrent unit, with beta = |threshold|; alpha (n,)."""
        n = s.shape[1]
        return self._add("memory", n, (c, threshold, alpha.data_ptr(), s.data_ptr()), n, value=epsilon)

    def lru(self, b: Value, decay: tuple[Tensor, Tensor], gain: Tensor, re: Tensor, im: Tensor) -> Value:
        """s = lambda s + gain b as (B, 2 n), real parts first, as b; gain (2 n,); it and lambda in the dtype of the
        recurrence."""
        n = re.shape[1]
        self._kept += *decay, gain
        places = b, *(x.data_ptr() for x in (*decay, gain, re, im))
        return self._add("lru", 2 * n, places, n)

    def index(self, x: Value, weight: Tensor, bias: Tensor, values: Tensor, s: Tensor) -> Value:
        """V[s] of finite-state heads, s the first largest of weight[:, s] x + bias[:, s]; weight (K n n, K d), bias (K,
        n, n), values (K, n, d), s (B, K) uint8."""
        heads, n, width = *bias.shape[:2], weight.shape[1]
        places = x, *(tensor.data_ptr() for tensor in (weight, bias, values, s))
        return self._add("index", width, places, n, width, parts=heads)

    def run(self) -> None:
        """Runs what was recorded."""
        code = library().code
        operations, threads = b"".join(self._operations), torch.get_num_threads()
        if code.hybridlm_decode(operations, len(self._operations), self.rows, DTYPES[self.dtype], threads, self._isa):
            raise RuntimeError(f"the C kernels of a decode step cannot run here: {self.dtype}, {SETS[self._isa]}")

    def _add(
        self, name: str, numbers: int, places: tuple[int, ...], n: int, k: int = 0, *, parts: int = 0,
        value: float = 0.0, to: Tensor | None = None,
    ) -> Value:  # fmt: skip
        """Records an operation whose result has so many numbers a row; its place is the last."""
        result = self._take(self.rows * numbers * self.size) if to is None else to.data_ptr()
        unused = (0,) * (7 - len(places))
        self._operations.append(_OPERATION.pack(OPERATIONS[name], parts, n, k, value, *places, result, *unused))
        return result

    def _take(self, count: int) -> int:
        """The address of so many bytes."""
        place = -(-self._next // _ALIGNED) * _ALIGNED
        if place + count > self._end:
            if self._memory is not None:
                self._kept.append(self._memory)
            held = 0 if self._memory is None else self._memory.numel()
            self._memory = _room.memory = torch.empty(max(2 * held, 2 * count, 2**16), dtype=torch.uint8, device="cpu")
            self._next = self._memory.data_ptr()
            self._end = self._next + self._memory.numel()
            place = -(-self._next // _ALIGNED) * _ALIGNED
        self._next = place + count
        return place
