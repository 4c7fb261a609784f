"""What a data folder holds, by source and split: documents, tokens, bytes, and what was left out.

Sums over the manifest's shards, so that they hold for a folder that was made in several goes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hybridlm.data.scan import Scan
from hybridlm.data.shards import SPLITS
from hybridlm.data.sources import Source


def by_source(sources: list[Source], found: Scan, splits: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The manifest's `sources`: for each its name, kind and licence, what was left out, and documents, tokens and bytes
    of each split."""
    report = []
    for number, source in enumerate(sources):
        entry: dict[str, Any] = {
            "source": source.label,
            **source.origin(),
            "documents": found.documents[number],
            "duplicates": found.duplicates[number],
            "empty": found.empty[number],
        }
        for split in SPLITS:
            shards = [shard["sources"][number] for shard in splits[split]]
            entry[split] = {key: sum(shard[key] for shard in shards) for key in ("documents", "tokens", "bytes")}
        report.append(entry)
    return report


def lines(manifest: dict[str, Any]) -> Iterator[str]:
    """The report as text."""
    sources = manifest["sources"]
    several = len(sources) > 1
    if several:
        for entry, weight in zip(sources, manifest["weights"], strict=True):
            yield f"  {entry['source']} (weight {weight:g}): {entry['documents']:,} documents{_left_out([entry])}"
            for split in SPLITS:
                if entry[split]["documents"]:
                    yield f"    {_amounts(split, entry[split])}"
        yield f"  All sources: {sum(entry['documents'] for entry in sources):,} documents{_left_out(sources)}"
    elif left_out := _left_out(sources):
        yield f"  {sources[0]['documents']:,} documents{left_out}"
    for split in SPLITS:
        total = {key: sum(entry[split][key] for entry in sources) for key in ("documents", "tokens", "bytes")}
        if total["documents"]:
            yield f"  {_amounts(split, total)}"


def _left_out(entries: list[dict[str, Any]]) -> str:
    counts = {
        what: sum(entry[key] for entry in entries)
        for key, what in (("duplicates", "duplicates dropped"), ("empty", "empty ones left out"))
    }
    return "".join(f", {count:,} {what}" for what, count in counts.items() if count)


def _amounts(split: str, total: dict[str, int]) -> str:
    held_out = " held out" if split == "validation" else ""
    return (
        f"{split}: {total['documents']:,} documents{held_out}, {total['tokens']:,} tokens, {total['bytes']:,} bytes, "
        f"{total['bytes'] / total['tokens']:.2f} bytes per token"
    )
