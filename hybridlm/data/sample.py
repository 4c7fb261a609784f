"""The text that a tokenizer is trained on: all of it, or an even sample where there is more than a limit.

The trainer's memory grows with the distinct words it has seen, so that it cannot be given any amount. Texts are cut
into pieces, each with a number drawn from its document's hash; whenever there is too much, the half with the higher
numbers goes. What stays does not depend on the order of the documents, and lies in a temporary file. Neighbouring
pieces are joined again, so that below the limit the texts are what they were.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

import numpy as np

from hybridlm.errors import UserError

_PIECE = 16_384  # characters
_HEADER = struct.Struct("<QIQI")  # document, piece, drawn number, bytes


class Sample:
    """`add` each document's text, then read `texts`. limit: bytes to keep at most."""

    def __init__(self, limit: int):
        self.limit, self.n_bytes = limit, 0
        self._below = 2**64
        with _room():
            self._file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115

    def add(self, number: int, digest: bytes, text: str) -> None:
        """Document `number`, whose text has this hash. Raises UserError where the temporary folder is full."""
        with _room():
            for piece, at in enumerate(range(0, len(text), _PIECE)):
                drawn = hashlib.blake2b(digest + piece.to_bytes(8, "little"), digest_size=8).digest()
                self._keep(number, piece, int.from_bytes(drawn, "little"), text[at : at + _PIECE].encode())
            while self.n_bytes > self.limit:
                self._halve()

    def _keep(self, number: int, piece: int, drawn: int, data: bytes) -> None:
        if drawn < self._below:
            self._file.write(_HEADER.pack(number, piece, drawn, len(data)) + data)
            self.n_bytes += len(data)

    def _halve(self) -> None:
        before, self._file = self._file, tempfile.TemporaryFile()  # noqa: SIM115
        self._below //= 2
        self.n_bytes = 0
        with before:
            for number, piece, drawn, data in _records(before):
                self._keep(number, piece, drawn, data)

    def texts(self, dropped: np.ndarray) -> Iterator[str]:
        """The texts, without the documents whose entry in `dropped` (documents,) is true."""
        with _room():
            self._file.flush()
        joined: list[bytes] = []
        last = (-1, -1)
        for number, piece, _, data in _records(self._file):
            if dropped[number]:
                continue
            if joined and (number, piece) != (last[0], last[1] + 1):
                yield b"".join(joined).decode()
                joined = []
            joined.append(data)
            last = (number, piece)
        if joined:
            yield b"".join(joined).decode()

    def close(self) -> None:
        with suppress(OSError):  # no room for what was not written yet, and is not needed
            self._file.close()


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the temporary folder ({os.environ.get('TMPDIR', '/tmp')}) cannot hold the text that the tokenizer is "
            f"trained on ({error.strerror}). Make room, set TMPDIR to another folder, or lower tokenizer_bytes."
        ) from error


def _records(file: BinaryIO) -> Iterator[tuple[int, int, int, bytes]]:
    file.seek(0)
    while header := file.read(_HEADER.size):
        number, piece, drawn, length = _HEADER.unpack(header)
        yield number, piece, drawn, file.read(length)
