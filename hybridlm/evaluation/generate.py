"""Text from a checkpoint, streamed as it is written.

The same seed gives the same text on the same machine; the caller's random state is left as it was.
"""

from __future__ import annotations

from typing import Any, TextIO

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from hybridlm.data.tokenizer import prompt_ids
from hybridlm.errors import UserError


class Stream(TextStreamer):
    """transformers' streamer, onto any file (None: the standard output), without special tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, file: TextIO | None = None):
        super().__init__(tokenizer, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self.file = file

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
) -> str:
    """Prompt and continuation as one string; also written to `stream`, if given, word by word.

    An empty prompt starts a document. The text ends at the end symbol or after `max_new_tokens`. temperature 0: always
    the likeliest token (top_p and top_k must then be left alone). top_p 1 and top_k 0: all tokens may be drawn. Raises
    UserError for values out of range.
    """
    check_options(max_new_tokens, temperature, top_p, top_k, seed)
    ids = torch.tensor([prompt_ids(tokenizer, prompt)], device=model.device)
    choice: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        choice = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": top_k}
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode():
        torch.manual_seed(seed)
        written = model.generate(  # pyright: ignore[reportCallIssue]  the Auto classes give models that can generate
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            streamer=Stream(tokenizer, stream) if stream is not None else None,
            **choice,
        )
    return str(tokenizer.decode(written[0], skip_special_tokens=True, clean_up_tokenization_spaces=False))


def check_options(max_new_tokens: int, temperature: float, top_p: float, top_k: int, seed: int) -> None:
    """Raises one UserError that lists every option that is out of range."""
    rules = (
        ("max_new_tokens", max_new_tokens, "at least 1", max_new_tokens >= 1),
        ("temperature", temperature, "between 0 (always the likeliest token) and 100", 0 <= temperature <= 100),
        ("top_p", top_p, "above 0 and at most 1 (1: all tokens)", 0 < top_p <= 1),
        ("top_k", top_k, "at least 0 (0: all tokens)", top_k >= 0),
        ("seed", seed, "between 0 and 2^63 - 1", 0 <= seed < 2**63),
    )
    problems = [f"{name}={value}: must be {allowed}" for name, value, allowed, good in rules if not good]
    if temperature == 0 and (top_p != 1.0 or top_k != 0):
        problems.append(
            "temperature=0 always takes the likeliest token: leave out top_p and top_k, or give a temperature above 0"
        )
    if problems:
        raise UserError("; ".join(problems) + ".")
