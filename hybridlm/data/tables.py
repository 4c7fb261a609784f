"""Parquet files and data sets of `datasets`: one column of a table, batch by batch; a row is a document.

Both libraries run over bytes that someone else wrote (and a data set over the network), and raise whatever their parts
raise. Any of it becomes a UserError that names the file or the set.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybridlm.errors import UserError

_ROWS = 256  # in memory at a time
_BUFFER = 2**20  # bytes read at a time, instead of a whole column chunk


def parquet(path: Path, field: str) -> Iterator[str]:
    """The text column `field` of a Parquet file."""
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
        schema = file.schema_arrow
    except Exception as error:
        raise UserError(f"{path}: it cannot be read as Parquet ({_short(error)}). Get the file again.") from None
    with file:
        if field not in schema.names:
            raise UserError(f"{path}: no column {field!r}; the file has {schema.names}. Set `field`.")
        kind = schema.field(field).type
        if not _is_text(kind):
            raise UserError(f"{path}: column {field!r} is of type {kind}, no text. Set `field` to one that holds text.")
        number = 0
        batches = file.iter_batches(batch_size=_ROWS, columns=[field])
        while True:
            try:
                batch = next(batches, None)
                rows = None if batch is None else batch.column(0).to_pylist()
            except Exception as error:
                raise UserError(
                    f"{path}: behind row {number} it cannot be read ({_short(error)}). Get the file again."
                ) from None
            if rows is None:
                return
            for text in rows:
                if text is None:
                    raise UserError(f"{path}, row {number}: column {field!r} is null, no text. Remove such rows first.")
                yield text
                number += 1


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def data_set(dataset: str, name: str | None, split: str, field: str, streaming: bool) -> Iterator[str]:
    """The texts of one column of a data set, from a `save_to_disk` folder or `load_dataset`."""
    try:
        rows = _load(dataset, name, split, streaming)
        columns: list[str] | None = rows.column_names  # None: a stream that does not know them before it is read
    except Exception as error:  # builders run code and connections of their own
        raise UserError(
            f"sources: dataset {dataset!r} (split {split!r}) cannot be loaded: {_short(error)}. Give a folder made by "
            "save_to_disk, or a name on the Hub while there is a network."
        ) from error
    if columns is not None and field not in columns:
        raise _no_field(dataset, field, columns)
    number = -1
    iterator = iter(rows if columns is None else rows.select_columns([field]))  # the other columns need not be read
    while True:
        try:
            row = next(iterator, None)
        except Exception as error:
            raise UserError(
                f"sources: dataset {dataset!r} cannot be read behind row {number}: {_short(error)}. Check the set and "
                "the connection, and give the command again."
            ) from error
        if row is None:
            return
        number += 1
        if field not in row:
            raise _no_field(dataset, field, list(row))
        if not isinstance(row[field], str):
            raise UserError(
                f"sources: dataset {dataset!r}, row {number}: field {field!r} is {repr(row[field])[:80]}, no text. "
                "Remove such rows first."
            )
        yield row[field]


def _load(dataset: str, name: str | None, split: str, streaming: bool) -> Any:
    import datasets  # slow to import, and few runs need it

    folder = Path(dataset)
    if (folder / "dataset_info.json").exists() or (folder / "dataset_dict.json").exists():
        data: Any = datasets.load_from_disk(str(folder))
        if isinstance(data, datasets.DatasetDict):
            data = data[split]
        elif split != "train":
            raise ValueError("the saved data set has no splits; leave 'split' out")
        return data.with_format(None)
    if streaming:
        try:
            return datasets.load_dataset(dataset, name, split=split, streaming=True)
        except Exception:  # offline with the set in the cache, or a kind that cannot be streamed
            return datasets.load_dataset(dataset, name, split=split)
    return datasets.load_dataset(dataset, name, split=split)


def _no_field(dataset: str, field: str, columns: list[str]) -> UserError:
    return UserError(f"sources: dataset {dataset!r} has no field {field!r}; it has {columns}. Set `field`.")


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "..."
