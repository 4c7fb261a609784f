"""Several processes on this machine: tokens per second, bytes sent and memory, for each way to share a run.

    speed     tokens per second of a step (median), for 1, 2 and 4 processes with the same batch; bytes that a process
              sends in a step, counted by the loopback interface, beside those of `hybridlm.bench.traffic`
    memory    the most that a process had in use beyond its libraries, for sequences of growing length: all of each in
              one process, or shared by several

The processes are started as torchrun starts them and run `hybridlm pretrain`'s own loop (`scaling_rank`). The loopback
interface counts whatever the machine sends to itself, headers too, so nothing else should be at work; on Linux,
`sudo unshare -n bash -c 'ip link set lo up; python scripts/bench_scaling.py'` has one of its own.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from hybridlm.bench.cells import Problem
from hybridlm.bench.timing import check_counts, check_each
from hybridlm.bench.traffic import shape_of, traffic
from hybridlm.data.prepare import prepare
from hybridlm.data.shards import TokenShards
from hybridlm.errors import UserError
from hybridlm.training.config import config_yaml, load_config
from hybridlm.training.sections import PretrainConfig

KINDS = ("ddp", "fsdp", "sequence")
WARM = 2
"""Steps that are not counted, in which buffers and connections are made."""


@dataclass(frozen=True)
class Size:
    """Of what is trained."""

    pattern: str = "(rglru bmru)*3"
    width: int = 256
    vocabulary: int = 4096
    length: int = 1024
    """Tokens of a sequence where speed is measured."""
    batch: int = 8
    lengths: tuple[int, ...] = (2048, 8192, 32768)
    """Where memory is."""
    text: int | None = None
    """So many letters of a novel; None: both novels."""


QUICK = Size(pattern="rglru bmru", width=32, vocabulary=300, length=64, batch=4, lengths=(64,), text=30_000)


def measure(
    *,
    kinds: Sequence[str] = KINDS,
    processes: Sequence[int] = (1, 2, 4),
    steps: int = 6,
    limit: float = 900.0,
    quick: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Rows of speed and of memory; a row with a problem where a run failed. steps: counted ones of each run."""
    check_counts(steps=steps)
    counts, size = check_each("processes", processes), QUICK if quick else Size()
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise UserError(f"kinds: there is no {unknown[0]!r}. Choose from {', '.join(KINDS)}.")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = _prepared(Path(folder), size)
        for what, kind, count, length in _wanted(kinds, counts, size):
            row = {"what": what, "kind": kind, "processes": count, "length": length}
            try:
                config = _recipe(Path(folder), data, size, row, WARM + (steps if what == "speed" else 0))
                row |= _figures(config, row, size, Path(folder), limit)
            except (Problem, UserError) as error:
                row["problem"] = str(error)
            rows.append(row)
            progress(table({"rows": [row]}).splitlines()[-1])
    return {"size": vars(size) | {"lengths": list(size.lengths)}, "rows": rows}


def _wanted(kinds: Sequence[str], counts: Sequence[int], size: Size) -> Iterator[tuple[str, str, int, int]]:
    """What is measured, way, processes, length of a sequence. One process shares nothing: it is there once."""
    for count in counts:
        for kind in kinds if count > 1 else ["alone"]:
            yield "speed", kind, count, size.length
    if "sequence" in kinds:
        for length in size.lengths:
            for count in counts:
                yield "memory", "sequence" if count > 1 else "alone", count, length


def _prepared(folder: Path, size: Size) -> Path:
    source = {"builtin": "austen"}
    if size.text is not None:
        novel = resources.files("hybridlm.data.austen") / "persuasion.txt"
        (folder / "text.txt").write_text(novel.read_text(encoding="utf-8")[: size.text], encoding="utf-8")
        source = {"path": str(folder / "text.txt")}
    settings: dict[str, Any] = {"sources": [source], "validation": {"by": "position", "share": 0.1}}
    settings |= {"output": str(folder / "data"), "vocab_size": size.vocabulary}
    config = load_config(None, [f"data.prepare={json.dumps(settings)}", "training.steps=1"])
    assert config.data.prepare is not None
    return Path(prepare(config.data.prepare, lambda _: None))


def _recipe(folder: Path, data: Path, size: Size, row: dict[str, Any], steps: int) -> PretrainConfig:
    parallel = {"sequence": row["processes"]} if row["kind"] == "sequence" else {}
    parallel |= {"kind": "fsdp"} if row["kind"] == "fsdp" else {}
    batch = size.batch if row["what"] == "speed" else 1
    model = {"pattern": size.pattern, "hidden_size": size.width, "num_attention_heads": 4}
    return load_config(
        None,
        [
            f"data.folder={data}",
            f"data.sequence_length={row['length']}",
            f"model={json.dumps(model)}",
            f"training={json.dumps({'steps': steps, 'batch_size': batch})}",
            f"parallel={json.dumps(parallel | {'timeout': 5.0})}",
            "validation={every: 0, at_start: false, max_windows: 1, batch_size: 1}",
            "checkpoint.every=0",
            "logging.memory_every=0",
            f"run={json.dumps({'folder': str(folder / 'runs'), 'name': '-'.join(map(str, row.values()))})}",
        ],
    )


def _figures(config: PretrainConfig, row: dict[str, Any], size: Size, folder: Path, limit: float) -> dict[str, Any]:
    """Of a run that is started here, and waited for. Raises Problem."""
    count, out = row["processes"], folder / config.run.name
    out.mkdir()
    recipe = out / "recipe.yaml"
    recipe.write_text(config_yaml(config), encoding="utf-8")
    kept = "returned" if row["what"] == "memory" else "kept"
    run_ranks(["-m", "hybridlm.bench.scaling_rank", str(recipe), str(out), kept], count, limit)
    found = [json.loads((out / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in range(count)]
    if row["what"] == "memory":
        return {"peak_bytes": [one["peak"] for one in found]}
    ends = found[0]["ends"][WARM - 1 :]
    seconds = statistics.median(after - before for before, after in pairwise(ends))
    shape = shape_of(config, TokenShards(config.data.folder or "", "train").vocab_size)
    expected = traffic(config, shape, count)
    # gloo, which CPUs have, makes an all-reduce of a reduce-scatter, and sends twice as much.
    more = 0 if torch.cuda.is_available() else expected.scatter
    figures = {
        "tokens_per_second": size.batch * size.length / seconds,
        "expected_bytes": round(expected.total + more),
    }
    sent = found[0]["sent"][WARM - 1 :]
    if None not in sent:
        between = [after - before for before, after in pairwise(sent)]
        figures["sent_bytes"] = round(statistics.median(between) / count)
    return figures


def run_ranks(words: Sequence[str], count: int, limit: float) -> None:
    """Runs Python with `words` in so many processes, with the variables that torchrun sets, or in one without. Raises
    Problem, with the last line that the first failure said, and ends the others."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    started: list[subprocess.Popen[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for rank in range(count):
                said = Path(folder, str(rank)).open("w", encoding="utf-8")  # noqa: SIM115  closed by the with below
                with said:
                    started.append(
                        subprocess.Popen(
                            [sys.executable, *words],
                            env=_environment(rank, count, port),
                            stdout=subprocess.DEVNULL,
                            stderr=said,
                            text=True,
                        )
                    )
            failed = _first_failure(started, limit)
        finally:
            for process in started:
                if process.poll() is None:
                    process.kill()
                process.wait()
        if failed is None:
            return
        lines = Path(folder, str(failed)).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if started[failed].returncode == -9 and not lines:
        raise Problem(f"took longer than {limit:g} s")
    raise Problem(lines[-1] if lines else f"process {failed} ended with code {started[failed].returncode}")


def _environment(rank: int, count: int, port: int) -> dict[str, str]:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    plain = {name: value for name, value in os.environ.items() if name not in names}
    plain |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if count == 1:
        return plain
    values = (str(rank), str(rank), str(count), str(count), "127.0.0.1", str(port))
    return plain | dict(zip(names, values, strict=True))


def _first_failure(started: Sequence[subprocess.Popen[str]], limit: float) -> int | None:
    """The number of a process that failed, or of one that is not done in time; None where all are done well."""
    until = time.monotonic() + limit
    while time.monotonic() < until:
        codes = [process.poll() for process in started]
        bad = next((rank for rank, code in enumerate(codes) if code), None)
        if bad is not None or None not in codes:
            return bad
        time.sleep(0.05)
    return next(rank for rank, process in enumerate(started) if process.poll() is None)


def table(result: dict[str, Any]) -> str:
    """The rows as aligned text."""
    lines = [
        f"{'':<8}{'way':<10}{'processes':>9}{'length':>8}{'tokens/s':>11}{'sent':>14}{'expected':>14}{'ratio':>7}"
        f"{'peak of a process':>20}"
    ]
    for row in result["rows"]:
        start = f"{row['what']:<8}{row['kind']:<10}{row['processes']:>9}{row['length']:>8,}"
        if "problem" in row:
            lines.append(f"{start}  {row['problem']}")
        elif row["what"] == "memory":
            lines.append(f"{start}{'':>46}{max(row['peak_bytes']) / 2**20:>16,.0f} MiB")
        else:
            sent, expected = row.get("sent_bytes"), row["expected_bytes"]
            words = "unknown" if sent is None else f"{sent / 2**20:,.2f} MiB"
            ratio = f"{sent / expected:.2f}" if sent is not None and expected else ""
            speed = f"{row['tokens_per_second']:>11,.0f}"
            lines.append(f"{start}{speed}{words:>14}{f'{expected / 2**20:,.2f} MiB':>14}{ratio:>7}".rstrip())
    return "\n".join(lines)
