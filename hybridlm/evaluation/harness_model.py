"""A model as lm-evaluation-harness calls it: `HFLM` with the start symbol put where training put it.

`HFLM` leaves start symbols to the tokenizer. Of a tokenizer that adds one it asks for two in rolling perplexities, and
counts the second as a token of the text; of one that adds none it asks for none. Here every text begins with exactly
one, as in training and in `evaluate --text`, and is scored without it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hybridlm.data.tokenizer import prompt_ids, start_and_end
from hybridlm.errors import UserError


def harness_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: int, batch_size: int) -> Any:
    """An `HFLM` around `model`. context: tokens in a window; longer prompts lose their beginning.

    Needs lm-eval. The model is used in the dtype and on the device that it has; its logits are normalised in fp32.
    """
    from lm_eval.models import huggingface

    base: Any = huggingface.HFLM

    class HarnessModel(base):
        starts = True  # whether `tok_encode` puts the start symbol in front
        truncated = 0  # prompts that were longer than the context

        def tok_encode(
            self,
            string: str,
            add_special_tokens: bool | None = None,
            left_truncate_len: int | None = None,
            **kwargs: Any,
        ) -> list[int]:
            ids = prompt_ids(tokenizer, string)
            ids = ids if self.starts and add_special_tokens is not False else ids[1:]
            return ids[-left_truncate_len:] if left_truncate_len else ids

        def tok_batch_encode(
            self,
            strings: list[str],
            padding_side: str = "left",
            left_truncate_len: int | None = None,
            truncation: bool = False,
        ) -> tuple[torch.Tensor, torch.Tensor]:
            rows = [self.tok_encode(text) for text in strings]
            if left_truncate_len:
                self.truncated += sum(len(row) > left_truncate_len for row in rows)
                rows = [row[-left_truncate_len:] for row in rows]
            length = max(map(len, rows))
            pad = start_and_end(tokenizer)[1]  # masked, so any token will do
            ids = torch.tensor([[pad] * (length - len(row)) + row for row in rows])
            mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
            return ids, mask

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return super().loglikelihood(requests, disable_tqdm=not sys.stderr.isatty())

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            self.starts = False  # HFLM puts it in front of the first window itself
            try:
                return super().loglikelihood_rolling(requests, disable_tqdm=not sys.stderr.isatty())
            finally:
                self.starts = True

        def _loglikelihood_tokens(
            self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: int | None = None
        ) -> list[tuple[float, bool]]:
            lengths: dict[tuple[int, ...], set[int]] = {}
            for texts, before, tokens in requests:
                if not 0 < len(tokens) <= context:
                    raise UserError(_unscorable(texts, len(tokens), context))
                self.truncated += len(before) + len(tokens) > context + 1
                lengths.setdefault((*before, *tokens[:-1]), set()).add(len(tokens))
            # HFLM scores requests that differ in the last token from one forward, and takes for granted that their
            # answers are of one length: an unconditional "a b" beside "a" + " b" would get the wrong logits.
            self.logits_cache = all(len(found) == 1 for found in lengths.values())
            quiet = disable_tqdm or override_bs is not None  # one bar for each batch of windows
            return super()._loglikelihood_tokens(requests, disable_tqdm=quiet, override_bs=override_bs)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return super().generate_until(requests, disable_tqdm=not sys.stderr.isatty())

    return HarnessModel(
        pretrained=model,
        tokenizer=tokenizer,
        backend="causal",
        batch_size=batch_size,
        max_length=context,
        softmax_dtype="float32",
    )


def _unscorable(texts: tuple[str, str] | None, count: int, context: int) -> str:
    answer = repr(texts[1][:60]) if texts is not None else "a text"
    if not count:
        return f"tasks: the answer {answer} has no token, so it has no likelihood. Check the choices of the task."
    return f"context={context}: the answer {answer} alone has {count} tokens. Give --context {count} or more."
