"""Prompts of a file, answered in batches.

A line is drawn with random numbers of its own, one a token: where that number falls among the cumulated probabilities.
So what is written to it depends on the model, the settings, its place in the file and the seed, and not on the batch it
was in, nor on where a call was interrupted; but for a last bit of the logits, since products of other shapes sum in
another order, which tips a token where two are next to equal.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hybridlm.data.tokenizer import prompt_ids
from hybridlm.errors import UserError
from hybridlm.evaluation.generate import check_options, end_ids, padding, write_on
from hybridlm.evaluation.loading import load_checkpoint
from hybridlm.evaluation.places import check_out
from hybridlm.evaluation.prompts import Output, read_prompts
from hybridlm.evaluation.reading import Progress, load_state, new_ids, tokenizer_fingerprint
from hybridlm.files import expanded, locked
from hybridlm.model.conversation_hybridlm import Conversation
from hybridlm.model.statefile_hybridlm import read_header, weights_hash


def answer_file(
    checkpoint: str | Path,
    source: str | Path,
    out: str | Path,
    *,
    batch_size: int = 8,
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    answers: int = 1,
    state: str | Path | None = None,
    dtype: str = "auto",
    device: str = "auto",
    progress: Progress | None = None,
    waiting: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Continues each `prompt` of a JSON lines file `answers` times, with seeds from `seed` on, and appends a line to
    `out` for each: the fields of the prompt, `text` (what was written behind it), `seed`, `tokens` and `finish_reason`
    (`stop`: the end symbol; `length`). Returns the facts.

    Lines of an earlier call with the same settings are kept. state: as of `generate_text`, for all prompts. waiting: is
    called where another process writes to `out`, until that has ended. Raises UserError for all that is wrong with
    options, input, output, checkpoint and state, in this order.
    """
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed,
    }  # fmt: skip
    check_options(**options, answers=answers)
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: must be at least 1.")
    rows = read_prompts(source)
    with locked(check_out(out, "--output"), waiting):
        output = Output(out, rows, answers)
        output.check_settings(**options, answers=answers)
        model, tokenizer = load_checkpoint(checkpoint, dtype=dtype, device=device)
        talk = None if state is None else load_state(model, tokenizer, state)
        if talk is not None and talk.pending_ids is None:
            _check_not_empty(rows, source)
        kept = output.begin(**options, answers=answers, **_made_of(model, tokenizer, state))
        writer = _Writer(model, tokenizer, talk, options)
        start, tokens = time.perf_counter(), 0
        for first in range(kept, output.wanted, batch_size):
            places = [divmod(index, answers) for index in range(first, min(first + batch_size, output.wanted))]
            written = writer.write([(rows[row]["prompt"], row, seed + answer) for row, answer in places])
            output.append(first, written)
            tokens += sum(fields["tokens"] for fields in written)
            if progress is not None:
                progress(tokens, (first + len(places)) / output.wanted)
    return {
        "out": str(output.path), "lines": output.wanted, "kept": kept, "tokens": tokens,
        "seconds": time.perf_counter() - start, "device": str(model.device),
    }  # fmt: skip


def _made_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, state: str | Path | None) -> dict[str, Any]:
    """What else decides what is written, besides the options."""
    return {
        "weights": weights_hash(model),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "dtype": str(model.dtype).removeprefix("torch."),
        "state": None if state is None else read_header(expanded(state))["checksum"],
    }


def render(facts: dict[str, Any]) -> str:
    """The facts of `answer_file` as lines for a terminal."""
    kept = f", {facts['kept']:,} of them from before" if facts["kept"] else ""
    lines = [f"Wrote:  {facts['out']}, {facts['lines']:,} lines{kept}"]
    if facts["tokens"]:
        speed = facts["tokens"] / facts["seconds"]
        lines.append(f"Speed:  {facts['tokens']:,} tokens, {speed:,.0f} a second on {facts['device']}")
    return "\n".join(lines)


class _Writer:
    """A model that answers batches of prompts, each behind `state` or at the beginning of a text."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        state: Conversation | None,
        options: dict[str, Any],
    ):
        self.model, self.tokenizer, self.state, self.options = model, tokenizer, state, options
        self.ends = end_ids(model, tokenizer)

    def write(self, asked: list[tuple[str, int, int]]) -> list[dict[str, Any]]:
        """asked: prompt, its place in the file, and seed, of each row. Returns what is written to each, as fields."""
        inputs = self._inputs([self._ids(prompt) for prompt, _, _ in asked])
        length = inputs["input_ids"].shape[1]
        rows = [random.Random(f"{seed} {place}") for _, place, seed in asked]
        written = write_on(
            self.model,
            self.tokenizer,
            inputs,
            max_new_tokens=self.options["max_new_tokens"],
            temperature=0,
            top_p=1.0,
            top_k=0,
            seed=0,
            logits_processor=processors(self.options, rows),
        )
        return [self._fields(ids, seed) for ids, (_, _, seed) in zip(written[:, length:].tolist(), asked, strict=True)]

    def _ids(self, prompt: str) -> list[int]:
        if self.state is None:
            return prompt_ids(self.tokenizer, prompt)
        pending = [] if self.state.pending_ids is None else self.state.pending_ids[0].tolist()
        return pending + new_ids(self.tokenizer, prompt)[0].tolist()

    def _inputs(self, rows: list[list[int]]) -> dict[str, Any]:
        """Keyword arguments of `generate`: rows of one length, padded on the left."""
        width, pad = max(map(len, rows)), padding(self.tokenizer)
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self.model.device)
        if self.state is None:
            return {"input_ids": ids, "attention_mask": mask}
        twins = self.state.fork(len(rows))
        return Conversation(twins.cache, attention_mask=twins.attention_mask).inputs(ids, mask)

    def _fields(self, ids: list[int], seed: int) -> dict[str, Any]:
        end = next((place for place, token in enumerate(ids) if token in self.ends), None)
        ids = ids if end is None else ids[: end + 1]
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return {"text": text, "seed": seed, "tokens": len(ids), "finish_reason": "length" if end is None else "stop"}


class Draw(LogitsProcessor):
    """Leaves one token of each row, drawn from its distribution by the next number of the row's own generator."""

    def __init__(self, rows: list[random.Random]):
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores (B, V) float: logits, -inf where a token is out of question."""
        wide = scores.cpu() if scores.device.type == "mps" else scores  # which has no float64
        sums = wide.double().softmax(-1).cumsum(-1)
        total = sums[:, -1:]
        numbers = torch.tensor([[row.random()] for row in self.rows], dtype=torch.float64, device=sums.device)
        # Below the sum of all, also where the product is rounded up to it: behind it there is no token.
        drawn = torch.searchsorted(sums, torch.minimum(numbers * total, torch.nextafter(total, total - 1)), right=True)
        return torch.full_like(scores, -torch.inf).scatter(1, drawn.to(scores.device), 0.0)


def processors(options: dict[str, Any], rows: list[random.Random]) -> LogitsProcessorList:
    """What makes taking the likeliest token a drawing from the model's distribution, as the options shape it; nothing
    at temperature 0."""
    chain = LogitsProcessorList()
    if options["temperature"] == 0:
        return chain
    chain.append(TemperatureLogitsWarper(float(options["temperature"])))
    if options["top_k"] > 0:
        chain.append(TopKLogitsWarper(options["top_k"]))
    if options["top_p"] < 1:
        chain.append(TopPLogitsWarper(options["top_p"]))
    chain.append(Draw(rows))
    return chain


def _check_not_empty(rows: list[dict[str, Any]], source: str | Path) -> None:
    for number, row in enumerate(rows, start=1):
        if not row["prompt"]:
            raise UserError(
                f"{source}: prompt {number} is empty and the state ends with no pending token. Give it text."
            )
