"""A conversation in turns, of which the model reads each token once.

What is kept between turns is the model's state and nothing of the text. What was printed is what the model has read: an
answer that was cut, by its length or by Ctrl-C, ends where it was cut, and a symbol that ends a text is not read.
"""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from hybridlm.errors import UserError
from hybridlm.evaluation.generate import Stream, end_ids, write_on
from hybridlm.evaluation.reading import check_kind, check_place, load_state, save_state
from hybridlm.evaluation.turns import Turns
from hybridlm.files import expanded
from hybridlm.model.cell_hybridlm import FULL_ATTENTION
from hybridlm.model.conversation_hybridlm import Conversation
from hybridlm.model.snapshot_hybridlm import tokens_seen

_ANSWERS = "answers"
"""The note of a saved state that says how many answers there were, which the seed of the next one follows from."""


class Chat:
    """A hybridlm model, what it has read, and how a turn is read.

    settings: max_new_tokens, temperature, top_p, top_k and seed of `generate_text`, in range; they may be set between
    turns. Answer k, from 0, is drawn with seed + k. stop: text behind which an answer ends, a part of it. talk:
    what was read, None where that is nothing. Raises UserError for a model of another kind.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        turns: Turns,
        stop: str | None = None,
        **settings: Any,
    ):
        check_kind(model)
        self.model, self.tokenizer, self.turns, self.settings = model, tokenizer, turns, settings
        self.until = [] if stop is None else [StopStringCriteria(tokenizer, [stop])]
        self.talk: Conversation | None = None
        self.last: tuple[Conversation | None, list[int]] | None = None
        """What had been read before the last turn, and that turn: to be answered again."""
        self.answers, self.stopped = 0, False
        """How many answers there were, and whether Ctrl-C ended the last one."""

    def say(self, text: str, stream: TextIO | None = None) -> str:
        """Reads a turn and answers it, word by word on `stream`; returns the answer. An empty turn: the answer before
        goes on; as the first one of a base model, a text begins.

        Ctrl-C ends the answer at its next token. A second one, one while the turn is read, or any error leaves the
        conversation as it was. Raises UserError for text that is none, and for an empty turn behind the end of a text.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError("that is not UTF-8, and was not read.") from None
        ids = self.turns.ids(text, first=self.talk is None) if text or self.talk is None else []
        return self._answer(self.talk, ids, stream)

    def retry(self, stream: TextIO | None = None) -> str:
        """Answers the last turn again, with the next seed, in place of its answer. Raises UserError where there is
        none, and where the answer would be the same."""
        if self.last is None:
            raise UserError("nothing was said yet that could be answered again.")
        if self.settings["temperature"] == 0:
            raise UserError("the likeliest answer would be the same again. /set temperature 0.8 draws another one.")
        return self._answer(*self.last, stream)

    def reset(self) -> None:
        """Forgets all that was read."""
        self.talk = self.last = None

    def save(self, path: str | Path) -> None:
        """Writes the state, from which another process goes on with the same tokens, drawn ones too where its seed is
        the same. Raises UserError where it cannot, where a file that is no state stands there, and where nothing was
        read."""
        if self.talk is None:
            raise UserError("nothing was read yet, so that there is no state to save.")
        path = expanded(path)
        check_place(path, "state file")
        self.talk.notes[_ANSWERS] = str(self.answers)
        save_state(self.model, self.tokenizer, self.talk, path, "another name")

    def load(self, path: str | Path) -> None:
        """Goes on from a state in place of this conversation. Raises UserError as `load_state`; nothing has changed
        then."""
        found = load_state(self.model, self.tokenizer, path)
        self.talk = Conversation(
            found.cache, pending_ids=found.pending_ids, attention_mask=found.attention_mask, notes=found.notes
        )
        if found.notes.get(_ANSWERS, "").isdecimal():
            self.answers = int(found.notes[_ANSWERS])
        self.last = None

    @property
    def tokens(self) -> int:
        """How many tokens were read, those that are pending included."""
        if self.talk is None:
            return 0
        pending = self.talk.pending_ids
        return tokens_seen(self.talk.cache) + (0 if pending is None else pending.shape[1])

    @property
    def ended(self) -> bool:
        """Whether the model has ended its answer itself, so that it cannot go on."""
        return self.talk is not None and self.talk.pending_ids is None

    @property
    def too_long(self) -> bool:
        """Whether full attention looks back over more tokens than the model was made for."""
        config: Any = self.model.config
        return FULL_ATTENTION in config.layer_types and self.tokens > config.max_position_embeddings

    def _answer(self, before: Conversation | None, ids: list[int], stream: TextIO | None) -> str:
        new = torch.tensor([ids], dtype=torch.long, device=self.model.device)
        inputs = self._inputs(before, new)
        cache, length = inputs["past_key_values"], inputs["input_ids"].shape[1]
        seen = tokens_seen(cache)
        settings = {**self.settings, "seed": (self.settings["seed"] + self.answers) % 2**63}
        with AtNextToken() as interrupt:
            written = write_on(
                self.model,
                self.tokenizer,
                inputs,
                **settings,
                streamer=Stream(self.tokenizer, stream, hidden=length) if stream is not None else None,
                stopping_criteria=StoppingCriteriaList([interrupt, *self.until]),
            )
        unread = written[:, tokens_seen(cache) - seen :]
        if int(unread[0, -1]) in self._unprinted():
            unread = unread[:, :-1]
        self.talk = Conversation(
            cache,
            pending_ids=unread if unread.shape[1] else None,
            attention_mask=None if before is None else before.attention_mask,
            notes={} if before is None else dict(before.notes),
        )
        self.last = before, ids
        self.answers, self.stopped = self.answers + 1, interrupt.asked
        answer = self.tokenizer.decode(
            written[0, length:], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(answer)

    def _unprinted(self) -> set[int]:
        return end_ids(self.model, self.tokenizer).intersection(self.tokenizer.all_special_ids)

    def _inputs(self, before: Conversation | None, new: Tensor) -> dict[str, Any]:
        """Keyword arguments of `generate` with a cache of their own: what was read before stays as it is."""
        if before is None:
            cache = DynamicCache(config=self.model.config)
            return {"input_ids": new, "attention_mask": torch.ones_like(new), "past_key_values": cache}
        try:
            return before.fork().inputs(new)
        except ValueError:
            raise UserError("the text has ended here, and an empty turn adds nothing to it. Type something.") from None


class AtNextToken(StoppingCriteria):
    """`with AtNextToken() as interrupt:` Ctrl-C sets it, so that `generate` ends with its next token, where the cache
    is whole; a second one raises KeyboardInterrupt at once, as does one before the first token: a long turn may be
    read for minutes."""

    def __init__(self) -> None:
        self.asked = self.writing = False

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self.writing = True
        return torch.full((len(input_ids),), self.asked, device=input_ids.device, dtype=torch.bool)

    def __enter__(self) -> AtNextToken:
        # Signals reach the main thread alone; where they are ignored, or somebody else's, they stay so.
        main = threading.current_thread() is threading.main_thread()
        self.ours = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self.ours:
            signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self.ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _ask(self, *_: object) -> None:
        if self.asked or not self.writing:
            raise KeyboardInterrupt
        self.asked = True
