"""One model in one mode: a reference, an attempt, and the verdict.

The reference is made of plain forwards without a cache, a row at a time; the attempt is the call that the model's
documentation asks for. It `works` where tokens are the same and logits differ by rounding, is `refused` where it
raises, and `wrong` where it runs and gives, or does, something else.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

NEW = 8
"""Tokens that a mode generates."""
TOLERANCE = 1e-3
"""Largest difference of a logit, as a share of the largest logit, that counts as rounding in fp32."""
Result = tuple[Tensor, ...]


@dataclass
class Trial:
    """A reference, how to make the same in the mode in question, and the difference that counts as rounding."""

    want: Result
    attempt: Callable[[], Result]
    tolerance: float = TOLERANCE


class Subject:
    """A model under test and its calls. `model` is a fresh copy in every mode: some keep a state in their modules."""

    def __init__(self, model: Any, draft: Any):
        self.model, self.draft = copy.deepcopy(model), copy.deepcopy(draft)
        self.pristine = model
        # transformers' `generate` knows the two names too, by the class's name.
        self.cache_name = "cache_params" if "mamba" in type(model).__name__.lower() else "past_key_values"
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def ids(self, rows: int = 1, length: int = 14, seed: int = 1) -> Tensor:
        maker = torch.Generator().manual_seed(seed)
        return torch.randint(1, self.model.config.vocab_size, (rows, length), generator=maker)

    @torch.no_grad()
    def plain(self, ids: Tensor, **options: Any) -> Tensor:
        """Logits (B, T, V) of one forward without a cache."""
        return self.model(ids, use_cache=False, **options).logits

    @torch.no_grad()
    def cached(self, ids: Tensor, cache: Any, mask: Tensor | None = None) -> Tensor:
        """Logits of a forward that reads the cache and moves it on. mask: of the past and of these tokens.

        Models of `cache_params` get a mask with their first tokens only, as `generate` gives it to them.
        """
        options: dict[str, Any] = {self.cache_name: cache, "use_cache": True, "attention_mask": mask}
        if self.takes_positions:
            seen = 0 if mask is not None else int(cache.get_seq_length())
            whole = torch.ones(1, seen + ids.shape[1], dtype=torch.long) if mask is None else mask
            options["position_ids"] = (whole.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :].expand(ids.shape)
        elif mask is not None and mask.shape != ids.shape:
            options["attention_mask"] = None
        return self.model(ids, **options).logits

    def stepwise(self, ids: Tensor, cache: Any) -> Tensor:
        """The same, one token a call."""
        return torch.cat([self.cached(ids[:, t : t + 1], cache) for t in range(ids.shape[1])], dim=1)

    def cache(self) -> Any:
        return DynamicCache(config=self.model.config)

    def expected(self, *texts: Tensor) -> Result:
        """The greedy continuation of every text (1, T) by itself: tokens (B, NEW) and their logits (B, NEW, V)."""
        tokens, logits = [], []
        for ids in texts:
            length = ids.shape[1]
            for _ in range(NEW):
                ids = torch.cat([ids, self.plain(ids)[:, -1:].argmax(-1)], dim=1)
            tokens.append(ids[:, length:])
            logits.append(self.plain(ids)[:, length - 1 : -1])
        return torch.cat(tokens), torch.cat(logits)

    def generate(self, ids: Tensor | None, cache: Any = None, **options: Any) -> Result:
        """The same from transformers' `generate`."""
        if cache is not None:
            options[self.cache_name] = cache
        options = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True, **options}
        output = self.model.generate(ids, output_logits=True, **options)
        return output.sequences[:, -NEW:], torch.stack(output.logits, dim=1)


class Otherwise(Exception):
    """Raised by an attempt that ran, but not in the way that its mode is about: that is wrong, not refused."""


@dataclass
class Outcome:
    """verdict: works, refused or wrong. detail: the exception's first line, by how much, or what happened instead."""

    verdict: str
    detail: str = ""


def try_mode(mode: Callable[[Subject], Trial], model: Any, draft: Any) -> Outcome:
    """Runs a mode on copies of a model, so that nothing of one mode is left for the next."""
    torch.manual_seed(0)
    subject = Subject(model, draft)
    try:
        trial = mode(subject)
        got = trial.attempt()
    except Otherwise as what:
        return Outcome("wrong", str(what))
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return Outcome("refused", f"{type(error).__name__}: {lines[0] if lines else 'without a message'}")
    return judge(trial, got)


def judge(trial: Trial, got: Result) -> Outcome:
    """Whether `got` is the reference up to rounding."""
    for want, have in zip(trial.want, got, strict=True):
        if want.shape != have.shape:
            return Outcome("wrong", f"shape {tuple(have.shape)} instead of {tuple(want.shape)}")
        if not want.is_floating_point():
            if not torch.equal(want, have):
                return Outcome("wrong", f"{int((want != have).sum())} of {want.numel()} tokens differ")
        elif not deviation(want, have) <= trial.tolerance:  # NaN too
            return Outcome("wrong", f"off by {deviation(want, have):.2g} of the largest value")
    return Outcome("works")


def check_sensitive(model: Any) -> None:
    """Raises RuntimeError where the first of 14 tokens hardly shows in the last logits: then no mode could fail."""
    subject = Subject(model, model)
    ids = subject.ids()
    other = ids.clone()
    other[0, 0] = ids[0, 0] % (model.config.vocab_size - 1) + 1
    moved = deviation(subject.plain(ids)[:, -1], subject.plain(other)[:, -1])
    tokens, _ = subject.expected(ids)
    if moved < 5 * TOLERANCE or len(set(tokens[0].tolist())) < NEW // 2:
        raise RuntimeError(f"{type(model).__name__}: the first token moves the last logits by {moved:.1g}, {tokens}.")


def deviation(want: Tensor, have: Tensor) -> float:
    scale = want.abs().max().item()
    return (want.float() - have.float()).abs().max().item() / (scale or 1.0)
