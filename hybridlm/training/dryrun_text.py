"""A dry run as text."""

from collections import Counter

from hybridlm.training.arrangement import arrangement
from hybridlm.training.carrying import short_lanes, what_is_carried
from hybridlm.training.dryrun import DryRun
from hybridlm.training.memory_estimate import HELD
from hybridlm.training.parallel import data_places
from hybridlm.training.progress import clock


def dry_run_text(run: DryRun) -> str:
    """Lines of `name: value`; "unknown" where something cannot be known, and what would go wrong at the end."""
    flops = run.flops
    lines = {
        "recipe": f"{run.config.run.name}: {run.model_config.pattern}, width {run.model_config.hidden_size:,}",
        "vocabulary": f"{run.data.vocab_size:,} ({run.data.source})",
        "parameters": f"{run.parameters:,} with embeddings, {run.parameters - run.embedding:,} without",
        "weights": run.initial,
        "data": _data(run),
        "run": _length(run),
        "step": f"{run.config.training.batch_size:,} sequences x {run.config.data.sequence_length:,} tokens; "
        f"{run.processes} process(es), {run.micro_batch:,} sequence(s) in a forward of each{_part(run)}",
        "state": what_is_carried(run.config),
        "parallel": arrangement(run.config, run.processes),
        "flops": f"{_scaled(flops.training, 'FLOP')} for a token (products {_scaled(3 * flops.products)}, attention "
        f"{_scaled(3 * flops.attention)}; scans apart: {_scaled(flops.training_scans)}), {_total(run)} in all",
        "device": _device(run),
        "memory": _memory(run),
        "time": _time(run),
        "disk": f"{_bytes(run.checkpoint_bytes)} a checkpoint, {_bytes(run.disk_needed)} in all; "
        f"{_bytes(run.disk_free)} free",
        **run.paths,
        "folder": f"{run.config.run.path} ({run.run_state})",
    }
    width = max(map(len, lines)) + 2
    rows = [f"{name + ':':{width}}{value}" for name, value in lines.items() if value]
    return "\n".join([*rows, "", _layers(run), *_warnings(run)])


def _part(run: DryRun) -> str:
    """What of a sequence is in a process, where several share it."""
    length = run.config.data.sequence_length
    own = length * data_places(run.config, run.processes) // run.processes
    return "" if own == length else f", {own:,} tokens of each sequence"


def _data(run: DryRun) -> str:
    if run.data.tokens is None:
        return "unknown until it is prepared"
    return f"{run.data.tokens:,} training tokens, {run.data.documents:,} documents"


def _length(run: DryRun) -> str:
    step = f"{run.tokens_per_step:,} tokens a step"
    epochs = "epochs unknown until the data is prepared" if run.epochs is None else f"{run.epochs:.2f} epochs"
    if run.steps is None:
        return f"{step}; steps unknown until the data is prepared, {epochs}"
    return f"{run.steps:,} steps x {step} = {run.steps * run.tokens_per_step:,} tokens, {epochs}"


def _total(run: DryRun) -> str:
    return "unknown" if run.total_flops is None else _scaled(run.total_flops, "FLOP")


def _device(run: DryRun) -> str:
    precision = run.config.training.mixed_precision
    words = "fp32" if precision == "no" else f"{precision} products, fp32 weights"
    peak = "" if run.peak is None else f", at best {run.peak / 1e12:,.0f} TFLOP/s"
    return f"{run.device}{peak}, {words}"


def _memory(run: DryRun) -> str:
    parts = ", ".join(f"{name} {_bytes(size)}" for name, size in run.memory.parts.items() if size >= 2**16)
    words = f"{_bytes(run.memory.total)} for each process at its peak, in a {run.memory.moment} ({parts})"
    if run.memory.moment != "training step":
        words += f"; activations of a training step {_bytes(run.memory.activations)}"
    if run.device_type == "cpu":
        words += f"; the process may hold {HELD:g} times as much, in holes of its heap"
    return words + ("" if run.device_memory is None else f"; there are {_bytes(run.device_memory)}")


def _time(run: DryRun) -> str:
    if run.least_seconds is None:
        why = run.rate_from if run.rate is None else "the number of steps is not known"
        return f"unknown: {why}"
    return (
        f"at least {clock(run.least_seconds)}, if nothing but matrix products took time ({run.rate_from}); scans, "
        "norms, the optimizer and the data come on top"
    )


def _layers(run: DryRun) -> str:
    """Equal layers in one row."""
    counts = Counter((layer.block, layer.mixer, layer.mlp, layer.norms) for layer in run.layers)
    rows = [f"{'layers':<30}{'mixer':>14}{'MLP':>14}{'norms':>10}{'all of them':>16}"]
    for (block, *sizes), count in counts.items():
        mixer, mlp, norms = sizes
        rows.append(f"{f'{count} x {block}':<30}{mixer:>14,}{mlp:>14,}{norms:>10,}{count * sum(sizes):>16,}")
    rest = run.parameters - run.embedding - sum(layer.mixer + layer.mlp + layer.norms for layer in run.layers)
    tied = ", tied" if run.model_config.tie_word_embeddings else ", output projection"
    rows.append(f"{'embedding' + tied:<68}{run.embedding:>16,}")
    rows.append(f"{'last norm':<68}{rest:>16,}")
    return "\n".join(rows)


def _warnings(run: DryRun) -> list[str]:
    found = []
    on_one = run.memory.total * (run.processes if run.device_type == "cpu" else 1)
    if run.device_memory is not None and on_one > run.device_memory:
        found.append(
            f"The run does not fit: it needs {_bytes(on_one)} and the device has {_bytes(run.device_memory)}. Lower "
            f"training.micro_batch_size, or set training.gradient_checkpointing=true{_dealt_out(run)}."
        )
    if run.disk_needed > run.disk_free:
        found.append(
            f"The disk of {run.config.run.path} is too small: {_bytes(run.disk_needed)} are needed and "
            f"{_bytes(run.disk_free)} are free. Lower checkpoint.keep, or choose another run.folder."
        )
    if run.per_epoch is not None and run.data.tokens is not None and run.data.documents is not None:
        lanes = short_lanes(run.config, run.per_epoch, run.data.tokens / run.data.documents)
        found += [lanes] if lanes else []
    return ["", *found] if found else []


def _dealt_out(run: DryRun) -> str:
    several = run.processes > 1 and run.device_type != "cpu"  # where each has a memory of its own
    return " or parallel.kind=fsdp" if several and run.config.parallel.kind == "ddp" else ""


def _bytes(size: float) -> str:
    """4000000000 -> "3.73 GiB"."""
    unit = next((unit for unit in ("TiB", "GiB", "MiB", "KiB") if size >= _UNITS[unit]), "bytes")
    return (
        f"{size / _UNITS[unit]:,.0f} {unit}" if unit in ("bytes", "MiB", "KiB") else f"{size / _UNITS[unit]:.2f} {unit}"
    )


_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def _scaled(number: float, unit: str = "") -> str:
    """61234567 -> "61.2 M"."""
    for letter, size in (("Z", 1e21), ("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {letter}{unit}"
    return f"{number:.0f} {unit}".strip()
