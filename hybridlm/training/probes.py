"""Hooks that find the module in which numbers stop being finite, in a forward or in a backward.

A module is to blame whose output is not finite although its inputs are; in the backward, whose inputs or parameters get
a gradient that is not finite although the gradient of its output is. Of modules inside one another it is the innermost:
what a module computes between its children (a residual sum, a scan) is its own.

The head is not hooked: the model computes the loss without its logits only where nobody watches them. The head and the
loss are one place here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.hooks import RemovableHandle

LOSS = ""
"""The root's name: what it computes outside its children is the head and the loss."""


@dataclass
class Numbers:
    """What tensors hold."""

    dtype: str
    values: int
    """How many numbers."""
    nan: int
    infinite: int
    low: float | None
    """Smallest finite number; None where there is none."""
    high: float | None

    @property
    def finite(self) -> bool:
        return not self.nan and not self.infinite

    def asdict(self) -> dict[str, Any]:
        return asdict(self)


def numbers(tensors: list[Tensor]) -> Numbers:
    """Of all floating-point tensors among them, together."""
    found = [tensor.detach() for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    good = [tensor[tensor.isfinite()].float() for tensor in found]
    good = [tensor for tensor in good if tensor.numel()]
    return Numbers(
        dtype=", ".join(dict.fromkeys(str(tensor.dtype).removeprefix("torch.") for tensor in found)),
        values=sum(tensor.numel() for tensor in found),
        nan=sum(int(tensor.isnan().sum()) for tensor in found),
        infinite=sum(int(tensor.isinf().sum()) for tensor in found),
        low=min((float(tensor.min()) for tensor in good), default=None),
        high=max((float(tensor.max()) for tensor in good), default=None),
    )


@dataclass
class Blame:
    """The module, and what was seen."""

    module: str
    """Dotted name; LOSS: the head or the loss."""
    bad: Numbers
    """What is not finite: the module's output, or a gradient that it hands back."""
    given: Numbers
    """What it had: its inputs, or the gradient of its output."""
    parameter: str | None = None
    """Backward: the parameter whose gradient it is, where what the module hands back is finite."""


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _own(value: Any, hook: Any) -> Any:
    """The same tensor as a node of its own in the graph, with a hook for its gradient."""
    if not isinstance(value, Tensor) or not value.requires_grad or not torch.is_grad_enabled():
        return value
    value = value.view_as(value)
    value.register_hook(hook)
    return value


def _unmasked(keywords: dict[str, Any]) -> dict[str, Any]:
    """Attention masks hold -inf by right."""
    return {name: value for name, value in keywords.items() if "mask" not in name}


def _watched(model: Any) -> Iterator[tuple[str, nn.Module]]:
    head = model.get_output_embeddings()
    return ((name, module) for name, module in model.named_modules() if name and module is not head)


class ForwardProbe:
    """`with probe.watching():` a forward; then `probe.blame`, the first module in the order of execution."""

    def __init__(self, model: Any):
        self.model = model
        self.blame: Blame | None = None
        self.last: Numbers | None = None
        """What the last module gave: the head's input."""

    @contextmanager
    def watching(self) -> Iterator["ForwardProbe"]:
        handles = [
            module.register_forward_hook(partial(self._ran, name), with_kwargs=True)
            for name, module in _watched(self.model)
        ]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def _ran(self, name: str, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if self.blame is not None:
            return
        self.last = numbers(_tensors(output))
        if not self.last.finite:
            given = numbers(_tensors((args, _unmasked(kwargs))))
            if given.finite:
                self.blame = Blame(name, self.last, given)


class BackwardProbe:
    """`with probe.watching():` a forward; then the backward; then `probe.blame()`, the first module in the order of the
    backward, nearest to the loss."""

    def __init__(self, model: Any):
        self.model = model
        self._arrived: dict[str, Numbers] = {}
        """The gradient of each module's output; of several calls or tensors, the first that is not finite."""
        self._first: tuple[str, str | None, Numbers] | None = None
        """Module, parameter and gradient where a gradient was not finite for the first time."""
        self._outgoing = False
        self._handed: set[str] = set()
        """Modules that handed back a gradient that is not finite."""

        self._handles: list[RemovableHandle] = []
        self._hooked: set[int] = set()
        """Parameters that are watched."""

    @contextmanager
    def watching(self) -> Iterator["BackwardProbe"]:
        handles = self._handles
        for name, module in _watched(self.model):
            handles += [
                module.register_forward_pre_hook(partial(self._before, name), with_kwargs=True),
                module.register_forward_hook(partial(self._after, name)),
            ]
        self._watch_parameters("", self.model, recurse=True)
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def _watch_parameters(self, owner: str, module: nn.Module, recurse: bool = False) -> None:
        """Those that are part of the graph: of a sharded model, the gathered ones, which are there when it runs."""
        for name, parameter in module.named_parameters(prefix=owner, recurse=recurse):
            if parameter.requires_grad and id(parameter) not in self._hooked and not isinstance(parameter, DTensor):
                self._hooked.add(id(parameter))
                self._handles.append(parameter.register_hook(partial(self._back, name.rpartition(".")[0], name)))

    def _before(self, name: str, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """A module gets inputs of its own: the gradient it hands back is not mixed with that of its neighbours."""
        self._watch_parameters(name, module)
        return tree_map(partial(_own, hook=partial(self._back, name, None)), (args, kwargs))

    def _after(self, name: str, module: nn.Module, args: Any, output: Any) -> Any:
        """Nor is the gradient of an output with that of the same tensor inside the module."""
        return tree_map(partial(_own, hook=partial(self._reach, name)), output)

    def _reach(self, name: str, grad: Tensor) -> None:
        """The gradient of a module's output is known."""
        now = numbers([grad])
        if self._arrived.get(name, now).finite:
            self._arrived[name] = now
        if not now.finite and self._first is None:
            self._first, self._outgoing = (name, None, now), True

    def _back(self, name: str, parameter: str | None, grad: Tensor) -> None:
        """A module has handed a gradient back, to an input or a parameter."""
        if self._first is not None and (parameter is not None or name in self._handed):
            return
        now = numbers([grad])
        if not now.finite:
            self._first = self._first or (name, parameter, now)
            if parameter is None:
                self._handed.add(name)

    def blame(self) -> Blame | None:
        if self._first is None:
            return None
        name, parameter, bad = self._first
        if self._outgoing:
            # It came out of whatever uses this output: the module around it that still had a good gradient.
            while name and not self._good(name):
                name = name.rpartition(".")[0]
        nothing = Numbers("", 0, 0, 0, None, None)
        alone = parameter if name not in self._handed else None
        return Blame(name, bad, self._arrived.get(name, nothing), alone)

    def _good(self, name: str) -> bool:
        """Whether the module ran, and the gradient of its output is finite."""
        return name in self._arrived and self._arrived[name].finite
