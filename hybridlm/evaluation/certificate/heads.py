"""The proof for a stack of one layer of finite-state heads, which looks at each head by itself.

Without a convolution a head sees letters alone, so it is an automaton of its own; without an MLP what heads emit is
added up. All heads together may have more states than can be visited. So each is followed together with the task's
automaton alone: where that is in a state, the head may be in some of its own. If the right answer leads whichever of
these the heads are in, each for itself, then it leads on every word.

All is computed in float64, with bounds on what rounding in a narrower dtype can change, in whatever order sums are
taken: a head whose best destinations are too close to tell apart may go to each of them, and an answer must lead by
more than its logits may be off. The bounds are those of sums of n products, n u (Higham, Accuracy and Stability of
Numerical Algorithms, 2002, section 3.1), taken twice. They hold between the smallest normal number and the largest:
what a product below the first may lose is added to the size of every sum, and what comes near the second proves
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from hybridlm.evaluation.memory.formal import Automaton

ALIKE = 1e-9
"""The sum of what was taken apart may differ so much from the logits of the model, beside the largest of them."""
SLOPE = 1.1
"""Of silu, nowhere more."""
WORD = 256
"""Random letters of the word on which that is tried, behind each letter once."""


@dataclass(frozen=True)
class Heads:
    """A model taken apart. The logits behind letter a are weight z / rms(z) + bias, where z = letter[a] + the sum over
    heads k of emitted[a, k, s_k], and s_k is the l of the largest theta[a, k, s_k before, l]; heads start in state 0.

    theta (A, K, n, n), letter (A, D), emitted (A, K, n, D), weight (C, D), the norm's own included, bias (C,), eps of
    the norm. theta_size, emitted_size: the same sums, of absolute values. terms: about how many numbers are added up on
    the way to a number. floor: what is added to the absolute values for numbers that are too small for the dtype; lost
    (C,): the same of logits. largest: of the numbers on the way to theta, emitted and logits. dtype: the one that all
    these bounds are for."""

    theta: np.ndarray
    theta_size: np.ndarray
    letter: np.ndarray
    emitted: np.ndarray
    emitted_size: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    eps: float
    terms: int
    floor: float
    lost: np.ndarray
    largest: float
    dtype: torch.dtype

    @property
    def count(self) -> int:
        return self.theta.shape[1]

    @property
    def finite(self) -> bool:
        arrays = self.theta_size, self.letter, self.emitted_size, self.weight, self.bias, self.lost, self.largest
        return all(bool(np.isfinite(array).all()) for array in arrays)

    def rms(self, z: np.ndarray) -> np.ndarray:
        return np.sqrt(np.square(z).mean(-1) + self.eps)

    def logits(self, word: Sequence[int]) -> np.ndarray:
        """(T, C)."""
        state, rows, each = np.zeros(self.count, dtype=np.int64), [], np.arange(self.count)
        moves = self.theta.argmax(-1)
        for letter in word:
            state = moves[letter, each, state]
            z = self.letter[letter] + self.emitted[letter, each, state].sum(0)
            rows.append(self.weight @ z / self.rms(z) + self.bias)
        return np.stack(rows)

    @property
    def blur(self) -> float:
        """By how much a sum may be off, beside the sum of its absolute values."""
        return 2 * self.terms * torch.finfo(self.dtype).eps / 2


@dataclass(frozen=True)
class Proof:
    """pairs: of a state of the task and one of a head, over all heads. steps: letters from them. answers: the right
    answer leads by at least so many logits. decisions: the smallest lead of the destinations that a head may go to over
    those that it does not; infinite where there are none."""

    pairs: int
    steps: int
    answers: float
    decisions: float


@torch.no_grad()
def take_apart(model: Any, dtype: torch.dtype = torch.float64) -> Heads | None:
    """None where the model is not such a stack. model: a `HybridLMForTokenClassification` in float64. dtype: the one
    that something will be shown of."""
    config = model.config
    if config.block_types != ("nfsm",) or config.conv_kernel or config.mlp_size or config.input_skip:
        return None
    layer = model.model.layers[0]
    mixer, cell = layer.mixer, layer.mixer.cells[0]
    maps = mixer.in_proj, mixer.gate_proj, mixer.out_proj, cell.transition, model.score
    if any(type(each) is not nn.Linear for each in maps if each is not None):  # an adapter, which gives more
        return None
    floor = torch.finfo(dtype).tiny / torch.finfo(dtype).eps
    x = model.model.embed_tokens.weight
    u = layer.mixer_norm(x)
    u_size = u.abs() + floor * (1 + layer.mixer_norm.weight.abs())
    v_size = F.linear(u_size, mixer.in_proj.weight.abs()) + floor
    bias, weight = cell.transition_bias, cell.transition.weight
    size = F.linear(v_size, weight.abs()) + floor
    values = cell.values.expand(len(x), -1, -1, -1)
    values_size = values.abs() + floor
    sizes = [u_size, v_size, size, values_size]
    if mixer.gate_proj is not None:
        gate = F.silu(mixer.gate_proj(u))
        before = F.linear(u_size, mixer.gate_proj.weight.abs()) + floor
        gate_size = gate.abs() + SLOPE * before + floor
        values = values * gate.unflatten(-1, (cell.heads, 1, -1))
        values_size = values_size * gate_size.unflatten(-1, (cell.heads, 1, -1)) + floor
        sizes += [before, gate_size, values_size]
    into = mixer.out_proj.weight.unflatten(1, (cell.heads, -1))
    score, norm = model.score.weight, model.model.norm.weight
    sizes.append(norm.abs() * x.shape[1] ** 0.5)
    return Heads(
        theta=(cell.transition(mixer.in_proj(u)).unflatten(-1, bias.shape) + bias).numpy(),
        theta_size=(size.unflatten(-1, bias.shape) + bias.abs()).numpy(),
        letter=x.numpy(),
        emitted=torch.einsum("aknd,Dkd->aknD", values, into).numpy(),
        emitted_size=(torch.einsum("aknd,Dkd->aknD", values_size, into.abs()) + floor).numpy(),
        weight=(score * norm).numpy(),
        bias=model.score.bias.numpy(),
        eps=config.rms_norm_eps,
        terms=2 * x.shape[1] + 2 * mixer.in_proj.out_features + 16,
        floor=floor,
        lost=floor * (1 + score.abs() @ (1 + norm.abs())).numpy(),
        largest=max(float(each.max()) for each in sizes),
        dtype=dtype,
    )


@torch.no_grad()
def is_sum_of(model: Any, heads: Heads) -> bool:
    """Whether the model answers as its parts do, tried on one word that has every letter."""
    letters = len(heads.letter)
    word = np.concatenate([np.arange(letters), np.random.default_rng(0).integers(letters, size=WORD)])
    logits = model(torch.from_numpy(word).unsqueeze(0)).logits[0].numpy()
    return bool(np.abs(logits - heads.logits(word.tolist())).max() <= ALIKE * max(1.0, np.abs(logits).max()))


def prove(heads: Heads, task: Automaton) -> Proof | None:
    """Follows each head, then takes the worst of what they may emit together. None where the right answer may not lead,
    or where numbers are none."""
    if not heads.finite:
        return None
    following, labels = task.transitions.numpy(), task.labels.numpy()
    comes = np.zeros(following.shape, dtype=bool)
    np.put_along_axis(comes, task.choices.numpy(), True, axis=1)
    close = 2 * heads.blur * heads.theta_size.max(-1, keepdims=True)
    leads = heads.theta.max(-1, keepdims=True) - heads.theta
    moves = leads <= close
    reached = [_reached(moves[:, k], following, comes) for k in range(heads.count)]
    answers = np.inf
    for letter in range(len(heads.letter)):
        here, leads_to = comes[:, letter], following[:, letter]
        after = [_after(move, states, leads_to, here) for move, states in zip(moves[letter], reached, strict=True)]
        if here.any():
            least, off = _least_leads(heads, letter, np.unique(leads_to[here]), after, labels)
            if not (least > off).all():
                return None
            answers = min(answers, float(least.min()))
    used = np.stack([comes.T.astype(np.int64) @ states for states in reached], axis=1) > 0  # (A, K, n)
    pairs = sum(int(states.sum()) for states in reached)
    steps = sum(int((states.sum(1) * comes.sum(1)).sum()) for states in reached)
    return Proof(pairs, steps, answers, float(np.where(moves, np.inf, leads).min(-1)[used].min()))


def _reached(moves: np.ndarray, following: np.ndarray, comes: np.ndarray) -> np.ndarray:
    """(Q, n): whether the task can be in a state and the head in another. moves (A, n, n) of the head, following and
    comes (Q, A) of the task."""
    found = np.zeros((len(following), moves.shape[1]), dtype=bool)
    found[0, 0] = True
    while True:
        before = found.copy()
        for letter, move in enumerate(moves):
            found |= _after(move, found, following[:, letter], comes[:, letter])
        if np.array_equal(found, before):
            return found


def _after(move: np.ndarray, reached: np.ndarray, following: np.ndarray, comes: np.ndarray) -> np.ndarray:
    """(Q, n): what the pairs `reached` may become by a letter. move (n, n), following and comes (Q,) of that letter."""
    found = np.zeros_like(reached)
    there = reached[comes].astype(np.float32) @ move.astype(np.float32) > 0
    np.logical_or.at(found, following[comes], there)
    return found


def _least_leads(
    heads: Heads, letter: int, tasks: np.ndarray, after: Sequence[np.ndarray], labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """By how much the right answer leads each class at least, in logits, behind a letter that led to one of the states
    `tasks`: (len(tasks), C), infinite for the right one; and by how much rounding may change that."""
    right = labels[tasks]
    z = heads.letter[letter]
    scores = heads.weight @ z
    lead = scores[right][:, None] - scores  # (len(tasks), C)
    low = high = np.broadcast_to(z, (len(tasks), len(z)))
    size = np.abs(low) + heads.floor
    for k, may_be in enumerate(after):
        allowed = may_be[tasks][:, :, None]
        gives = heads.emitted[letter, k]
        worth = gives @ heads.weight.T  # (n, C)
        lead = lead + np.where(allowed, worth[:, right].T[:, :, None] - worth, np.inf).min(1)
        low = low + np.where(allowed, gives, np.inf).min(1)
        high = high + np.where(allowed, gives, -np.inf).max(1)
        size = size + np.where(allowed, heads.emitted_size[letter, k], 0).max(1)
    blur, eps = heads.blur, heads.eps**0.5
    largest = heads.rms(np.maximum(np.abs(low), np.abs(high))) + blur * heads.rms(size)
    smallest = np.maximum(heads.rms(np.maximum(0, np.maximum(low, -high))) - blur * heads.rms(size), eps)
    largest, smallest = largest[:, None], smallest[:, None]
    least = lead / np.where(lead > 0, largest, smallest) + (heads.bias[right][:, None] - heads.bias)
    least[np.arange(len(tasks)), right] = np.inf
    logits = size @ np.abs(heads.weight).T / smallest + np.abs(heads.bias) + heads.lost
    off = 2 * blur * (logits + logits.max(1, keepdims=True))
    fits = _fits(heads, float(size.max()), float(logits.max()))
    return least, off if fits else np.full_like(least, np.inf)


def _fits(heads: Heads, size: float, logits: float) -> bool:
    """Whether no number becomes infinite in the dtype, the sums of squares in norms among them, and the norms' eps is
    none of the smallest there are. Norms are computed in fp32 at least."""
    kind, wide = torch.finfo(heads.dtype), torch.finfo(torch.promote_types(heads.dtype, torch.float32))
    largest = max(heads.largest, float(heads.theta_size.max()), size, logits)
    squares = heads.letter.shape[1] * size**2
    return largest < kind.max / 4 and squares < wide.max / 4 and heads.eps > wide.tiny / wide.eps
