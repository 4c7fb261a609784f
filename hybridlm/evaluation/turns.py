"""What a turn of a conversation is to the model: tokens that are added to the text, whatever was said before.

A base model knows texts alone, so that a turn continues the text as it was typed, or put into a form. A tokenizer with
a chat template says how a turn looks; of that, what it adds behind an answer is taken, and the turns before it are
never rendered again. A template that cannot be taken apart so is refused.
"""

from __future__ import annotations

from typing import Protocol

from transformers import PreTrainedTokenizerBase

from hybridlm.data.tokenizer import prompt_ids
from hybridlm.errors import UserError
from hybridlm.evaluation.reading import new_ids

PLACE = "{}"
"""Where a form has what was typed."""

_QUESTION, _ANSWER = "A QUESTION THAT STANDS FOR ANY", "AN ANSWER THAT STANDS FOR ANY"


class Turns(Protocol):
    """How turns become tokens."""

    said: str
    """In words, for whoever is about to type."""

    def ids(self, text: str, first: bool) -> list[int]:
        """Tokens that a turn adds; first: nothing was read before. Raises UserError for an empty turn that has none."""
        ...


def unescaped(text: str) -> str:
    """Text from a command line, where \\n stands for a line break and \\t for a tab."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def check_form(form: str | None) -> None:
    """Raises UserError for a form without a place, or with several."""
    if form is not None and form.count(PLACE) != 1:
        example = "'\\nQ: {}\\nA:'"
        raise UserError(f"--format {form!r}: needs {PLACE} once, where what you type stands, as in {example}.")


class TextTurns:
    """Turns that continue the text. form: what is read for a turn, with `{}` where it has what was typed, and \\n for a
    line break. Raises UserError for a form without a place."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, form: str = PLACE):
        check_form(form)
        self.tokenizer, self.form = tokenizer, unescaped(form)
        self.said = "what you type is continued as text, with no line break behind it"
        if form != PLACE:
            self.said = f"what you type is read as {form!r}"

    def ids(self, text: str, first: bool) -> list[int]:
        text = self.form.replace(PLACE, text) if text else ""
        return prompt_ids(self.tokenizer, text) if first else new_ids(self.tokenizer, text)[0].tolist()


class TemplateTurns:
    """Turns as the tokenizer's chat template writes them. system: stands in front of the first one.

    Raises UserError where the template fails, or does more than add each turn to those before it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system: str | None = None):
        self.tokenizer, self.said = tokenizer, "the tokenizer's chat template says how a turn is read"
        self.front = [] if system is None else [{"role": "system", "content": system}]
        # Behind two turns, a third is the same text as behind one.
        if self._added("How?", behind=(_QUESTION, "Why?")) != self._added("How?"):
            raise UserError(_REWRITES)
        if tokenizer.split_special_tokens and any(
            symbol in self._render("") for symbol in tokenizer.all_special_tokens
        ):
            self.said += ", its special symbols spelt out as text (split_special_tokens)"

    def ids(self, text: str, first: bool) -> list[int]:
        if not text:
            raise UserError("an empty turn says nothing. Type something.")
        text = self._render(text) if first else self._added(text)
        # As apply_chat_template does it: the symbols of a template are special ones where the tokenizer says so.
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _added(self, text: str, behind: tuple[str, ...] = (_QUESTION,)) -> str:
        """What stands behind the model's answer once another turn was said: its end, and that turn."""
        before, after = self._render(*behind), self._render(*behind, text)
        rest = after.removeprefix(before).lstrip()  # white space in front of an answer is the model's to write
        if not after.startswith(before) or not rest.startswith(_ANSWER):
            raise UserError(_REWRITES)
        return rest.removeprefix(_ANSWER)

    def _render(self, *turns: str) -> str:
        messages = list(self.front)
        for turn in turns:
            messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": _ANSWER}]
        try:
            text = self.tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template is a program that came with the tokenizer
            raise UserError(f"the tokenizer's chat template cannot be used ({error}). {_WITHOUT}") from error
        return str(text)


_WITHOUT = f"Give --format '{PLACE}' to go on without it: what you type is then continued as text."
_REWRITES = (
    "the tokenizer's chat template does more than add each turn to those before it: it rewrites or counts them, so "
    f"that the past would have to be read again. {_WITHOUT}"
)


def turns_for(tokenizer: PreTrainedTokenizerBase, form: str | None = None, system: str | None = None) -> Turns:
    """TextTurns where a form is given or the tokenizer has no chat template, else TemplateTurns. Raises UserError as
    these, and for a system message without a template."""
    if form is None and getattr(tokenizer, "chat_template", None) is not None:
        return TemplateTurns(tokenizer, system)
    if system is not None:
        why = "--format reads turns without it" if form is not None else "the tokenizer has none"
        raise UserError(f"--system: it stands in a chat template, and {why}. Leave it out, or type it as a turn.")
    return TextTurns(tokenizer, PLACE if form is None else form)
