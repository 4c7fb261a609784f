"""Text from a checkpoint, streamed as it is written.

The same seed gives the same text on the same machine; the caller's random state is left as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from hybridlm.data.tokenizer import prompt_ids, start_and_end
from hybridlm.errors import UserError
from hybridlm.evaluation.positions import check_positions
from hybridlm.evaluation.reading import CALL, new_ids
from hybridlm.model.conversation_hybridlm import Conversation


class Stream(TextStreamer):
    """transformers' streamer, onto any file (None: the standard output), without special tokens and without the first
    `hidden` tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, file: TextIO | None = None, hidden: int = 0):
        super().__init__(tokenizer, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self.file, self.hidden = file, hidden

    def put(self, value: Tensor) -> None:
        super().put(value[..., self.hidden :])  # the prompt comes first, in one call
        self.hidden = 0

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        print(text, end="\n" if stream_end else "", file=self.file, flush=True)


def generate_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    stream: TextIO | None = None,
    state: Conversation | None = None,
) -> str:
    """Prompt and continuation as one string; also written to `stream`, if given, word by word.

    An empty prompt starts a document. state: what the model has read before (`reading.load_state`), which stays as it
    is; the prompt continues it, and an empty one adds nothing. The text ends at the end symbol or after
    `max_new_tokens`. temperature 0: always the likeliest token (top_p and top_k must then be left alone). top_p 1 and
    top_k 0: all tokens may be drawn. Raises UserError for values out of range.
    """
    check_options(max_new_tokens, temperature, top_p, top_k, seed)
    inputs, hidden = _inputs(model, tokenizer, prompt, state)
    written = write_on(
        model,
        tokenizer,
        inputs,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        streamer=Stream(tokenizer, stream, hidden) if stream is not None else None,
    )
    return str(tokenizer.decode(written[0, hidden:], skip_special_tokens=True, clean_up_tokenization_spaces=False))


def write_on(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: dict[str, Any],
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    seed: int,
    **more: Any,
) -> Tensor:
    """Input and continuation, (B, T) int64, as transformers' `generate` gives them for `inputs`; more: its other
    keyword arguments. The options are those of `generate_text`, and are to be in range. Raises UserError where the
    checkpoint's generation_config.json says what cannot be done, or the model has not so many positions."""
    read = inputs["input_ids"].shape[1]
    check_positions(
        model,
        read + max_new_tokens - 1,  # the last one is not read
        f"prompt and max_new_tokens: {read:,} tokens and {max_new_tokens:,}",
        "Shorten one of the two.",
    )
    choice: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        choice = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": top_k}
    ends = sorted(end_ids(model, tokenizer))
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode(), _preferences(model):
        torch.manual_seed(seed)
        return model.generate(  # pyright: ignore[reportCallIssue]  the Auto classes give models that can generate
            **inputs,
            **in_calls(model, inputs["input_ids"]),
            max_new_tokens=max_new_tokens,
            eos_token_id=ends,
            pad_token_id=padding(tokenizer),
            **choice,
            **more,
        )


_PREFERENCES = (
    *("repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens"),
    *("sequence_bias", "exponential_decay_length_penalty", "min_length", "min_new_tokens", "renormalize_logits"),
    *("min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "remove_invalid_values"),
)
"""Fields of generation_config.json that are followed: they say what a model should rather write. How that is searched
for (beams, several answers, stop strings, another cache) is the command's, which writes one text as it comes."""


@contextmanager
def _preferences(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model generates as its generation_config.json says, as far as that is followed. What is raised there
    is a UserError where that may be why."""
    own = model.generation_config
    followed = {name: value for name in _PREFERENCES if (value := getattr(own, name, None)) is not None}
    config = GenerationConfig()
    for name, value in followed.items():
        setattr(config, name, value)
    model.generation_config = config
    try:
        yield
    except (ValueError, TypeError, LookupError) as error:
        if not followed:
            raise
        raise UserError(
            f"generation_config.json of the checkpoint: it cannot be followed ({' '.join(str(error).split())[:300]}). "
            f"It says {', '.join(followed)}; mend that, or remove the file."
        ) from error
    finally:
        model.generation_config = own


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The symbols that end a text: the tokenizer's, and those of the checkpoint's generation_config.json."""
    said: Any = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = [] if said is None else said if isinstance(said, list) else [said]
    if not all(type(end) is int for end in ends):
        raise UserError(
            f"generation_config.json of the checkpoint: eos_token_id is {said!r:.80}; must be a number or a list of "
            "numbers. Mend it, or remove the file."
        )
    return {start_and_end(tokenizer)[1], *ends}


def in_calls(model: PreTrainedModel, input_ids: Tensor) -> dict[str, int]:
    """What lets `generate` read input_ids (B, T) in calls of CALL tokens, so that its memory does not grow with T; for
    models of hybridlm, since not all others can."""
    long = model.config.model_type == "hybridlm" and input_ids.shape[1] > CALL
    return {"prefill_chunk_size": CALL} if long else {}


def padding(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills rows up: the end symbol where the tokenizer has none for it."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return int(pad)  # pyright: ignore[reportArgumentType]  load_tokenizer refuses one without an end symbol


def _inputs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, state: Conversation | None
) -> tuple[dict[str, Any], int]:
    """Keyword arguments of `generate`, and how many tokens at the front belong to the text before the prompt."""
    if state is None:
        ids = torch.tensor([prompt_ids(tokenizer, prompt)], device=model.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, 0
    new = new_ids(tokenizer, prompt)
    try:
        inputs = state.fork().inputs(new)
    except ValueError:
        raise UserError("prompt: it is empty and the state ends with no pending token. Give a prompt.") from None
    return inputs, inputs["input_ids"].shape[1] - new.shape[1]


def check_options(
    max_new_tokens: int, temperature: float, top_p: float, top_k: int, seed: int, answers: int = 1
) -> None:
    """Raises one UserError that lists every option that is out of range."""
    rules = (
        ("max_new_tokens", max_new_tokens, "at least 1", max_new_tokens >= 1),
        ("temperature", temperature, "between 0 (always the likeliest token) and 100", 0 <= temperature <= 100),
        ("top_p", top_p, "above 0 and at most 1 (1: all tokens)", 0 < top_p <= 1),
        ("top_k", top_k, "at least 0 (0: all tokens)", top_k >= 0),
        ("seed", seed, f"between 0 and 2^63 - {max(answers, 1)}", 0 <= seed <= 2**63 - max(answers, 1)),
        ("answers", answers, "at least 1", answers >= 1),
    )
    problems = [f"{name}={value}: must be {allowed}" for name, value, allowed, good in rules if not good]
    if temperature == 0 and (top_p != 1.0 or top_k != 0):
        problems.append(
            "temperature=0 always takes the likeliest token: leave out top_p and top_k, or give a temperature above 0"
        )
    if temperature == 0 and answers > 1:
        problems.append(f"answers={answers}: at temperature=0 they would all be the same; leave one of the two out")
    if problems:
        raise UserError("; ".join(problems) + ".")
