"""What a change of memory units does to what a model writes: its continuation of a text with and without the change,
and the next-token distributions on the same tokens.

The text is read as it is up to one token before the place where it is to go on. From there on there are three runs with
copies of the cache: the plain one writes, the changed one writes with the same random numbers, and the changed one
reads what the plain one wrote. At each token of that,

    KL = sum_v p(v) (log p(v) - log q(v))        nats, p plain, q changed; fp64

The plain run goes through hooks that change nothing, so that both runs take the same way through the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from hybridlm.errors import UserError
from hybridlm.evaluation.inspector.interventions import Freezes, intervene
from hybridlm.evaluation.inspector.units import memory_units
from hybridlm.evaluation.inspector.watching import watch
from hybridlm.evaluation.reading import CALL
from hybridlm.model.snapshot_hybridlm import fork, tokens_seen


@dataclass(frozen=True)
class Writing:
    """temperature 0: the likeliest token always; above: drawn, with `seed`."""

    tokens: int = 40
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Comparison:
    """plain, changed: the tokens of the two continuations. kl: nats, one for each token of `plain`, of the
    distributions that it was taken from. units_differ: units whose state differs when it is taken; units: of how
    many."""

    plain: list[int]
    changed: list[int]
    kl: list[float]
    units_differ: list[int]
    units: int


@dataclass
class _Run:
    """tokens that were written or read; log p (tokens, V) fp64, and the states (tokens, units) of all
    memory cells, when each was taken."""

    tokens: list[int]
    logs: Tensor
    states: Tensor


@torch.no_grad()
def compare(
    model: PreTrainedModel,
    ids: Sequence[int],
    *,
    flips: Sequence[str] = (),
    freezes: Freezes | None = None,
    writing: Writing | None = None,
) -> Comparison:
    """Continues `ids`, a document from its start symbol on, with and without a change of units in front of its last
    token.

    A flip turns the state that a unit brings to the last token; a freeze lasts from there to the end. Raises UserError
    as `intervene`, and where nothing is changed.
    """
    writing = writing or Writing()
    if not flips and not freezes:
        raise UserError("flip, freeze: neither is given, so nothing would change. Name a unit, such as --flip 1.17.")
    with intervene(model, flips=flips, freezes=freezes):
        pass  # refused before the text is read
    model.eval()
    stack: Any = model.base_model
    cache = DynamicCache(config=model.config)
    for first in range(0, len(ids) - 1, CALL):
        chunk = torch.tensor([list(ids[first : min(first + CALL, len(ids) - 1)])], device=model.device)
        stack(input_ids=chunk, past_key_values=cache, use_cache=True)
    plain = _run(model, cache, ids[-1], writing)
    with intervene(model, flips=flips, freezes=freezes):
        changed = _run(model, cache, ids[-1], writing)
    with intervene(model, flips=flips, freezes=freezes):
        same = _run(model, cache, ids[-1], writing, given=plain.tokens)
    p = plain.logs.exp()
    kl = torch.where(p > 0, p * (plain.logs - same.logs), 0.0).sum(1).clamp_min(0)  # below by rounding alone
    differ = (plain.states != same.states).sum(1)
    return Comparison(plain.tokens, changed.tokens, kl.tolist(), differ.tolist(), plain.states.shape[1])


def _run(
    model: PreTrainedModel, cache: DynamicCache, last: int, writing: Writing, given: Sequence[int] | None = None
) -> _Run:
    """Goes on behind `last` with a copy of the cache: writes, or reads `given`."""
    own: Any = fork(cache) if tokens_seen(cache) else DynamicCache(config=model.config)
    maker = torch.Generator().manual_seed(writing.seed)
    end = model.config.eos_token_id
    tokens: list[int] = []
    logs, states = [], []
    token = last
    with _states(model) as now:
        for step in range(writing.tokens if given is None else len(given)):
            output: Any = model(input_ids=torch.tensor([[token]], device=model.device), past_key_values=own)
            logs.append(output.logits[0, -1].cpu().double().log_softmax(0))
            states.append(torch.cat(now))
            token = _choose(logs[-1], writing.temperature, maker) if given is None else given[step]
            tokens.append(token)
            if given is None and token == end:
                break
    return _Run(tokens, torch.stack(logs), torch.stack(states))


def _choose(logs: Tensor, temperature: float, maker: torch.Generator) -> int:
    if temperature == 0:
        return int(logs.argmax())
    return int(torch.multinomial((logs / temperature).softmax(0), 1, generator=maker))


@contextmanager
def _states(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """The states of all memory cells behind the last call of the model, as a list that is kept up to date."""
    cells = memory_units(model)
    now = [torch.empty(0)] * len(cells)

    def keep(index: int, s: Tensor, _z: Tensor) -> None:
        now[index] = s[0, -1].cpu()

    with watch(cells, keep):
        yield now
