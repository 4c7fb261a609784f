"""Text files and JSON lines, plain or compressed (.gz, .zst), read line by line as bytes, so that an error can say
where it is: file and byte, or file and line. Bytes of a compressed file are counted as they are unpacked.
"""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from hybridlm.data.find import compression
from hybridlm.errors import UserError, install_command


def text_file(path: Path, documents: str) -> Iterator[str]:
    """The documents of a UTF-8 text file: the `file`, or each `paragraph` or `line` of it."""
    if documents == "file":
        yield "".join(_lines(path))
    elif documents == "line":
        yield from (line.rstrip("\r\n") for line in _lines(path))
    else:
        paragraph: list[str] = []
        for line in _lines(path):
            if line.strip():
                paragraph.append(line)
            elif paragraph:
                yield "".join(paragraph)
                paragraph = []
        if paragraph:
            yield "".join(paragraph)


def json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The number, from 1, and the JSON value of each line; blank lines are passed over."""
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line.removeprefix("\ufeff"))
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}:{number}: not a JSON value ({_json_reason(error)}). Write one JSON object a line."
            ) from None


def json_lines(path: Path, field: str) -> Iterator[str]:
    """The text in `field` of each line's JSON object; blank lines are passed over."""
    for number, row in json_rows(path):
        if not isinstance(row, dict) or not isinstance(row.get(field), str):
            raise UserError(
                f"{path}:{number}: no text in field {field!r}; the line has {_found(row)}. Set `field` to the one that "
                f"holds it."
            )
        text = row[field]
        if not text.isascii() and not is_text(text):
            raise UserError(
                f"{path}:{number}: field {field!r} holds half a surrogate pair, which is no character. Remove it first."
            )
        yield text


def is_text(text: str) -> bool:
    """Whether a string can be written in UTF-8: JSON's escapes can spell half a surrogate pair, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _json_reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else "a number of too many digits"


def _found(row: Any) -> str:
    """What a line has instead, cut to what fits into a message."""
    text = str(sorted(row) if isinstance(row, dict) else type(row).__name__)
    return text if len(text) <= 200 else text[:200] + "..."


def _lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their ends. Raises UserError with the byte offset of what is no text."""
    offset = 0
    try:
        with _open(path) as file:
            for line in file if compression(path) is None else _unpacked(path, file):
                zero = line.find(b"\0")
                if zero >= 0:
                    raise UserError(
                        f"{path}: byte {offset + zero} is 0, so this is a binary file. Give plain UTF-8 text or JSON "
                        f"lines."
                    )
                try:
                    yield line.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path}: byte {offset + error.start} is not UTF-8 ({error.reason}). Convert the file first, "
                        "e.g. `iconv -f latin1 -t utf-8`."
                    ) from None
                offset += len(line)
    except (EOFError, gzip.BadGzipFile, zlib.error, *_zstd_errors()) as error:
        raise UserError(
            f"{path}: behind byte {offset} of its content it is damaged or cut off ({error}). Get the file again."
        ) from None
    except OSError as error:
        raise UserError(f"{path}: it cannot be read ({error.strerror}).") from error
    if offset == 0:
        raise UserError(f"{path}: the file is empty. Remove it from the sources, or fill it.")


_PIECE = 2**24
_EXPANSION, _HARMLESS = 250, 2**28
"""How many times its size a compressed file may unpack to, from so many bytes on. Text packs to a third or a tenth;
what packs to a thousandth is one character repeated, as in files that are made to fill a memory."""


def _unpacked(path: Path, file: IO[bytes] | gzip.GzipFile) -> Iterator[bytes]:
    """The lines of a compressed file. A line may be all of it, so it is read in pieces."""
    most, total, parts = max(_HARMLESS, _EXPANSION * path.stat().st_size), 0, []
    while piece := file.readline(_PIECE):
        total += len(piece)
        if total > most:
            raise UserError(
                f"{path}: it unpacks to more than {_EXPANSION} times its size, which texts do not. If it is right, "
                "unpack it and give the result."
            )
        parts.append(piece)
        if piece.endswith(b"\n"):
            yield b"".join(parts)
            parts.clear()
    if parts:
        yield b"".join(parts)


def _open(path: Path) -> IO[bytes] | gzip.GzipFile:
    packed = compression(path)
    if packed is None or path.stat().st_size == 0:
        return path.open("rb")
    if packed == ".gz":
        return gzip.open(path, "rb")
    zstd = _zstd()
    if zstd is None:
        raise UserError(
            f"{path}: .zst files need the package backports.zstd (part of Python from 3.14 on): "
            f"{install_command('zstd')}."
        )
    # 31: sets such as Reddit's are packed with `--long=31`, which is refused unless it is asked for.
    return zstd.open(path, "rb", options={zstd.DecompressionParameter.window_log_max: 31})


def _zstd() -> Any:
    """The standard library's module, or its backport; None where neither is there."""
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError:
        return None
    return zstd


def _zstd_errors() -> tuple[type[Exception], ...]:
    zstd = _zstd()
    return () if zstd is None else (zstd.ZstdError,)
