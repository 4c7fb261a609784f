"""Which tensors live at the same time, seen on torch's fake tensors: bytes by purpose, and the moment of the most.

A storage counts from the operation that makes it until nothing refers to it any more, views and autograd's saved
tensors included. What an operation takes for itself while it runs is not seen.
"""

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

GRANULE = {"cuda": 512}
"""Device type -> what an allocation is rounded up to, in bytes (torch's caching allocator); elsewhere 64."""


class MemoryTrace(TorchDispatchMode):
    """`with FakeTensorMode(), MemoryTrace(device_type) as trace`: counts the tensors that are made inside.

    Set `purpose` to what the next ones are made for. `now` and `most` are bytes by purpose: at present, and when their
    sum was largest since `forget`.
    """

    def __init__(self, device_type: str):
        super().__init__()
        self.granule = GRANULE.get(device_type, 64)
        self.purpose = "temporary"
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.peak = 0
        self._total = 0
        self._held: dict[int, tuple[str, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_iter(out):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return out

    def assign(self, tensors: Iterable[Tensor], purpose: str, share: float = 1.0) -> None:
        """Counts these tensors under another purpose than the one that they were made under, or from now on. share: the
        part of each that is held here, the rest elsewhere."""
        for tensor in tensors:
            self._count(tensor)
            place = tensor.untyped_storage()._cdata
            before, counted = self._held[place]
            size = round(self._size(tensor) * share)
            self._held[place] = purpose, size
            self.now[before] -= counted
            self.now[purpose] += size
            self._total += size - counted

    def forget(self) -> None:
        """Looks for the most from now on."""
        self.peak, self.most = self._total, Counter(self.now)

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place = storage._cdata
        if place in self._held:
            return
        size = self._size(tensor)
        self._held[place] = self.purpose, size
        self.now[self.purpose] += size
        self._total += size
        weakref.finalize(storage, self._release, place)
        if self._total > self.peak:
            self.forget()

    def _size(self, tensor: Tensor) -> int:
        return -(-tensor.untyped_storage().nbytes() // self.granule) * self.granule

    def _release(self, place: int) -> None:
        purpose, size = self._held.pop(place)
        self.now[purpose] -= size
        self._total -= size


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' values; tensors without values have sizes too."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
