"""The pattern string: the one way to say which mixers a model stacks.

    pattern := item (space item)*          items follow one another in depth
    item    := unit ['*' count]            repeated `count` times
    unit    := layer | '(' pattern ')'
    layer   := mixer ('+' mixer)*          cells that run side by side in one layer, their outputs summed

`"(rglru bmru)*2 attention"` is five layers; `"rglru+bmru"` is one. `parse` gives one string a layer, `render` writes
the shortest pattern it can find, and `parse(render(layers)) == layers` always.
"""

import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from functools import lru_cache

MAX_LAYERS = 4096
MAX_DEPTH = 32
_LONG = 400
_TOKEN = re.compile(r"\s*([A-Za-z_][A-Za-z_0-9]*|[0-9]+|[()*+])")


def parse(pattern: str, mixers: Collection[str], standalone: Collection[str] = ()) -> tuple[str, ...]:
    """One string a layer, `"a"` or `"a+b"`, in depth order.

    `mixers` are the known names; those in `standalone` bring their own projections and cannot be part of `a+b`.
    Raises ValueError that shows the place of the problem.
    """
    if not isinstance(pattern, str):
        raise ValueError(f"pattern is {pattern!r}; it must be a string such as '(rglru bmru)*6'.")
    return _parse(pattern, tuple(sorted(mixers)), tuple(sorted(standalone)))


@lru_cache(maxsize=256)
def _parse(pattern: str, mixers: tuple[str, ...], standalone: tuple[str, ...]) -> tuple[str, ...]:
    return _Parser(pattern, mixers, standalone).run()


class _Parser:
    """Recursive descent over the tokens; one method a rule of the grammar above."""

    def __init__(self, pattern: str, mixers: tuple[str, ...], standalone: tuple[str, ...]):
        self.pattern, self.mixers, self.standalone = pattern, mixers, standalone
        self.tokens: list[tuple[str, int]] = []
        at = 0
        while at < len(pattern.rstrip()):
            match = _TOKEN.match(pattern, at)
            if match is None:
                raise self.error(f"unexpected character {pattern[at:].lstrip()[0]!r}", at)
            self.tokens.append((match.group(1), match.start(1)))
            at = match.end()
        self.next = self.depth = 0

    def run(self) -> tuple[str, ...]:
        layers = self.sequence()
        if self.peek() is not None:
            raise self.error("')' without '('")
        return tuple(layers)

    def error(self, problem: str, at: int | None = None) -> ValueError:
        if at is None:
            at = self.tokens[self.next][1] if self.next < len(self.tokens) else len(self.pattern)
        return ValueError(
            f"pattern {_shown(self.pattern, at)}: {problem} "
            f"at position {at}. Write mixers separated by spaces, '+' for cells "
            f"side by "
            f"side in one layer, '*n' and brackets to repeat, as in '(rglru bmru)*6'. Known mixers: "
            f"{', '.join(self.mixers)} (and cells of your own, after hybridlm.register_cell)."
        )

    def peek(self) -> str | None:
        return self.tokens[self.next][0] if self.next < len(self.tokens) else None

    def sequence(self) -> list[str]:
        layers: list[str] = []
        while self.peek() not in (None, ")"):
            layers += self.item(room=MAX_LAYERS - len(layers))
        if not layers:
            raise self.error("a mixer is missing")
        return layers

    def item(self, room: int) -> list[str]:
        if self.peek() == "(":
            self.next += 1
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise self.error(f"more than {MAX_DEPTH} brackets inside one another")
            layers = self.sequence()
            self.depth -= 1
            if self.peek() != ")":
                raise self.error("'(' is not closed")
            self.next += 1
        else:
            layers = [self.layer()]
        count = self.count() if self.peek() == "*" else 1
        if len(layers) * count > room:
            raise self.error(f"more than {MAX_LAYERS} layers")
        return layers * count

    def count(self) -> int:
        self.next += 1
        word = self.peek()
        digits = word.lstrip("0") if word is not None and word.isdigit() else ""
        if not digits:
            raise self.error("'*' needs a whole number of at least 1 behind it")
        if len(digits) > len(str(MAX_LAYERS)):  # Python reads no number of some thousand digits
            raise self.error(f"more than {MAX_LAYERS} layers")
        self.next += 1
        return int(digits)

    def layer(self) -> str:
        names = [self.mixer()]
        while self.peek() == "+":
            self.next += 1
            names.append(self.mixer())
        for name in names:
            if len(names) > 1 and name in self.standalone:
                raise self.error(
                    f"{name!r} brings its own projections and cannot stand in 'a+b'; give it a layer of its own"
                )
        return "+".join(names)

    def mixer(self) -> str:
        word = self.peek()
        if word is None or not word[0].isalpha():
            raise self.error("a mixer is missing")
        if word not in self.mixers:
            close = get_close_matches(word, self.mixers, n=1)
            raise self.error(f"unknown mixer {word[:60]!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
        self.next += 1
        return word


def _shown(pattern: str, at: int) -> str:
    """The pattern, or what of a long one is around a place."""
    if len(pattern) <= _LONG:
        return repr(pattern)
    start = max(0, at - _LONG // 2)
    end = start + _LONG
    return f"{'... ' * (start > 0)}{pattern[start:end]!r}{' ...' * (end < len(pattern))}"


def render(layers: Sequence[str]) -> str:
    """A short pattern that parses to `layers`: runs of equal layers and equal groups are folded, also nested."""
    if not layers:
        raise ValueError("layers is empty; a pattern needs at least one layer.")
    return " ".join(_fold(tuple(layers)))


@lru_cache(maxsize=1024)
def _fold(layers: tuple[str, ...]) -> tuple[str, ...]:
    """Greedy from the left: at each place the repetition that covers most layers; its body is folded in turn."""
    items: list[str] = []
    at = 0
    while at < len(layers):
        width, count = _longest_repeat(layers, at)
        if count == 1:
            items.append(layers[at])
            at += 1
            continue
        body = " ".join(_fold(layers[at : at + width]))
        grouped = any(sign in body for sign in " *+")
        items.append((f"({body})" if grouped else body) + f"*{count}")
        at += width * count
    return tuple(items)


def _longest_repeat(layers: tuple[str, ...], at: int) -> tuple[int, int]:
    """(width, count) of the repetition that starts at `at` and covers most layers; the narrowest of equals."""
    best: tuple[int, int] = (1, 1)
    for width in range(1, (len(layers) - at) // 2 + 1):
        unit, count = layers[at : at + width], 1
        while layers[at + count * width : at + (count + 1) * width] == unit:
            count += 1
        if count > 1 and width * count > best[0] * best[1]:
            best = (width, count)
    return best
