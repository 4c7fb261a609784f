"""The proof for a stack of one layer of finite-state heads, which looks at each head by itself.

Without a convolution a head sees letters alone, so it is an automaton of its own; without an MLP what heads emit is
added up. All heads together may have more states than can be visited. So each is followed together with the task's
automaton alone: where that is in a state, the head may be in some of its own. If the right answer leads whichever of
these the heads are in, each for itself, then it leads on every word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hybridlm.evaluation.memory.formal import Automaton

ALIKE = 1e-9
"""The sum of what was taken apart may differ so much from the logits of the model."""
WORD = 256
"""Letters of the word on which that is tried."""


@dataclass(frozen=True)
class Heads:
    """A model taken apart. The logits behind letter a are weight z / rms(z) + bias, where z = letter[a] + the sum over
    heads k of emitted[a, k, s_k], and s_k is moves[a, k, s_k before]; heads start in state 0.

    moves (A, K, n) int64, leads (A, K, n): by how much each destination was the best. letter (A, D), emitted
    (A, K, n, D), weight (C, D), the norm's own included, bias (C,), eps of the norm."""

    moves: np.ndarray
    leads: np.ndarray
    letter: np.ndarray
    emitted: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    eps: float

    @property
    def count(self) -> int:
        return self.moves.shape[1]

    def rms(self, z: np.ndarray) -> np.ndarray:
        return np.sqrt(np.square(z).mean(-1) + self.eps)

    def logits(self, word: Sequence[int]) -> np.ndarray:
        """(T, C)."""
        state, rows, each = np.zeros(self.count, dtype=np.int64), [], np.arange(self.count)
        for letter in word:
            state = self.moves[letter, each, state]
            z = self.letter[letter] + self.emitted[letter, each, state].sum(0)
            rows.append(self.weight @ z / self.rms(z) + self.bias)
        return np.stack(rows)


@dataclass(frozen=True)
class Proof:
    """pairs: of a state of the task and one of a head, over all heads. steps: letters from them. answers: the right
    answer leads by at least so many logits; where that is not above 0, it may not lead. decisions: the smallest lead of
    a move. used (A, K, n): whether a letter may come while the head is in a state."""

    pairs: int
    steps: int
    answers: float
    decisions: float
    used: np.ndarray


@torch.no_grad()
def take_apart(model: Any) -> Heads | None:
    """None where the model is not such a stack. model: a `HybridLMForTokenClassification`; what comes is in its
    dtype's precision, as float64."""
    config = model.config
    if config.block_types != ("nfsm",) or config.conv_kernel or config.mlp_size:
        return None
    layer = model.model.layers[0]
    mixer, cell = layer.mixer, layer.mixer.cells[0]
    x = model.model.embed_tokens.weight
    u = layer.mixer_norm(x)
    theta = cell.transition(mixer.in_proj(u)).unflatten(-1, cell.transition_bias.shape) + cell.transition_bias
    values = cell.values.expand(len(x), -1, -1, -1)
    if mixer.gate_proj is not None:
        values = values * F.silu(mixer.gate_proj(u)).unflatten(-1, (cell.heads, 1, -1))
    into = mixer.out_proj.weight.unflatten(1, (cell.heads, -1))
    best = theta.topk(min(2, cell.states), dim=-1).values
    return Heads(
        moves=theta.argmax(-1).numpy(),
        leads=_wide(best[..., 0] - best[..., 1]) if cell.states > 1 else np.full(theta.shape[:3], np.inf),
        letter=_wide(x),
        emitted=_wide(torch.einsum("aknd,Dkd->aknD", values, into)),
        weight=_wide(model.score.weight * model.model.norm.weight),
        bias=_wide(model.score.bias),
        eps=config.rms_norm_eps,
    )


def _wide(x: Tensor) -> np.ndarray:
    return x.double().numpy()


@torch.no_grad()
def is_sum_of(model: Any, heads: Heads) -> bool:
    """Whether the model answers as its parts do, tried on one random word."""
    word = np.random.default_rng(0).integers(len(heads.letter), size=WORD)
    logits = model(torch.from_numpy(word).unsqueeze(0)).logits[0].double().numpy()
    return bool(np.abs(logits - heads.logits(word.tolist())).max() <= ALIKE * max(1.0, np.abs(logits).max()))


def prove(heads: Heads, task: Automaton) -> Proof:
    """Follows each head, then takes the worst of what they may emit together."""
    following, labels = task.transitions.numpy(), task.labels.numpy()
    comes = np.zeros(following.shape, dtype=bool)
    np.put_along_axis(comes, task.choices.numpy(), True, axis=1)
    reached = [_reached(heads.moves[:, k], following, comes) for k in range(heads.count)]
    pairs = sum(int(states.sum()) for states in reached)
    steps = sum(int((states.sum(1) * comes.sum(1)).sum()) for states in reached)
    # (A, K, n): some state of the task that lets the letter come is there together with the head's state.
    used = np.stack([comes.T.astype(np.int64) @ states for states in reached], axis=1) > 0
    least = np.inf
    for letter in range(len(heads.letter)):
        here, leads_to = comes[:, letter], following[:, letter]
        after = [
            _after(move, states, leads_to, here) for move, states in zip(heads.moves[letter], reached, strict=True)
        ]
        if here.any():
            least = min(least, _least_answer(heads, letter, np.unique(leads_to[here]), after, labels))
    return Proof(pairs, steps, least, float(heads.leads[used].min()), used)


def _reached(moves: np.ndarray, following: np.ndarray, comes: np.ndarray) -> np.ndarray:
    """(Q, n): whether the task can be in a state and the head in another. moves (A, n) of the head, following and comes
    (Q, A) of the task."""
    found = np.zeros((len(following), moves.shape[1]), dtype=bool)
    found[0, 0] = True
    waiting = [(0, 0)]
    for q, state in waiting:  # which grows
        for letter in np.flatnonzero(comes[q]):
            after = int(following[q, letter]), int(moves[letter, state])
            if not found[after]:
                found[after] = True
                waiting.append(after)
    return found


def _after(moves: np.ndarray, reached: np.ndarray, following: np.ndarray, comes: np.ndarray) -> np.ndarray:
    """(Q, n): of the pairs `reached`, those that can be there right behind a letter. moves (n,), following and comes
    (Q,) of that letter."""
    found = np.zeros_like(reached)
    q, state = np.nonzero(reached & comes[:, None])
    found[following[q], moves[state]] = True
    return found


def _least_answer(
    heads: Heads, letter: int, tasks: np.ndarray, after: Sequence[np.ndarray], labels: np.ndarray
) -> float:
    """By how much the right answer leads at least, in logits, behind a letter that led to one of the states `tasks`."""
    right = labels[tasks]
    z = heads.letter[letter]
    scores = heads.weight @ z
    lead = scores[right][:, None] - scores  # (len(tasks), C)
    low = high = np.broadcast_to(z, (len(tasks), len(z)))
    for k, may_be in enumerate(after):
        allowed = may_be[tasks][:, :, None]
        gives = heads.emitted[letter, k]
        worth = gives @ heads.weight.T  # (n, C)
        lead = lead + np.where(allowed, worth[:, right].T[:, :, None] - worth, np.inf).min(1)
        low = low + np.where(allowed, gives, np.inf).min(1)
        high = high + np.where(allowed, gives, -np.inf).max(1)
    largest = heads.rms(np.maximum(np.abs(low), np.abs(high)))
    smallest = heads.rms(np.maximum(0, np.maximum(low, -high)))
    margin = lead / np.where(lead > 0, largest[:, None], smallest[:, None])
    margin += heads.bias[right][:, None] - heads.bias
    margin[np.arange(len(tasks)), right] = np.inf
    return float(margin.min())
