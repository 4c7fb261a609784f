"""The page of arithmetic is what the functions compute, and these are what one computes by hand."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from hybridlm import HybridLMConfig
from hybridlm.bench import arithmetic
from hybridlm.bench.arithmetic import Assumptions, Case, cases, memory, row, step
from hybridlm.bench.traffic import Shape, shape_of, traffic
from hybridlm.cli import build_parser
from hybridlm.training.config import load_config
from hybridlm.training.memory_estimate import estimate_memory
from hybridlm.training.setup import micro_batch_size

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "scaling.md"
RECIPE = ROOT / "configs" / "gpu8_1300m.yaml"
SMALL = Shape(parameters=1000, maps=800, layer_rest=100, layers=2, states=24, windows=48, flops=6000)


def small(*overrides):
    base = ["data.folder=x", "data.sequence_length=64", "training={steps: 1, batch_size: 16, micro_batch_size: 1}"]
    return load_config(None, [*base, *overrides])


def test_the_page_is_what_is_computed():
    """But for the memory, of which one row stands for all: each takes seconds."""
    text = PAGE.read_text(encoding="utf-8")
    every = cases(RECIPE)
    shape = shape_of(every[0].config, 32768)
    between = text.partition(arithmetic.BEGIN)[2].partition(arithmetic.END)[0]
    rows = [line for line in between.splitlines() if re.match(r"\| [\d,]+ \|", line)]
    sizes = [float(re.search(r"(\d+) GiB \|$", line)[1]) * 2**30 for line in rows]
    assert rows == [row(case, step(case, shape), size) for case, size in zip(every, sizes, strict=True)]
    assert arithmetic.describe(shape) in between
    assert "\n".join(arithmetic._assumed(Assumptions())) in between
    chosen = next(number for number, case in enumerate(every) if case.name == "fsdp, a copy in each machine")
    assert memory(every[chosen]) == pytest.approx(sizes[chosen], abs=2**29)


def test_traffic_by_hand():
    assert traffic(small(), SMALL, 1).total == 0
    ddp = traffic(small(), SMALL, 4)
    assert (ddp.reduce, ddp.total) == (6000, 6000)  # 2 * 3/4 * 4 bytes * 1000
    # 4 forwards; linear maps 800 * 4, rest 100 * 4, twice; outside the layers 100 * 4.
    fsdp = traffic(small("parallel.kind=fsdp"), SMALL, 4)
    assert (fsdp.gather, fsdp.scatter, fsdp.reduce) == (4 * 0.75 * (2 * 3600 + 400), 3000, 0)
    kept = traffic(small("parallel={kind: fsdp, reshard: false}"), SMALL, 4)
    assert kept.gather == 4 * 0.75 * 4000
    bf16 = traffic(small("parallel.kind=fsdp", "training.mixed_precision=bf16"), SMALL, 4)
    assert bf16.gather == 4 * 0.75 * (2 * 2000 + 400)
    hybrid = traffic(small("parallel={kind: fsdp, shard: 2}"), SMALL, 4)
    assert (hybrid.gather, hybrid.scatter, hybrid.reduce) == (4 * 0.5 * 7600, 2000, 2 * 0.5 * 4000 / 2)
    # 2 places of 2: 8 forwards each, forward and backward: 2 numbers of 24, 48 inputs, to one other.
    shared = traffic(small("parallel.sequence=2"), SMALL, 4)
    assert (shared.reduce, shared.states) == (6000, 8 * 2 * 4 * (2 * 24 + 48))
    again = traffic(small("parallel.sequence=4", "training.gradient_checkpointing=true"), SMALL, 4)
    assert again.states == 16 * 3 * 3 * 4 * (2 * 24 + 48)
    automata = replace(SMALL, states=0, windows=0, heads=3, mapped=15)  # maps of bytes forward, numbers backward
    assert traffic(small("parallel.sequence=2"), automata, 4).states == 8 * (15 + 3 + 4 * 15)
    again = traffic(small("parallel.sequence=4", "training.gradient_checkpointing=true"), automata, 4)
    assert again.states == 16 * 3 * (2 * (15 + 3) + 4 * 15)


def test_the_shape_of_a_model():
    model = {"pattern": "rglru lru+bmru", "hidden_size": 16, "num_attention_heads": 2, "conv_kernel": 4}
    config = load_config(None, ["data.folder=x", "training.steps=1", f"model={model}".replace("'", "")])
    shape = shape_of(config, 64)
    assert shape.layers == 2
    assert shape.root == 64 * 16 + 16  # the tied embedding, and the last norm
    assert shape.windows == 2 * 3 * shape.states // 4  # states: one of rglru, two of lru, one of bmru, for each channel
    assert shape.parameters == shape.maps + shape.layer_rest + shape.root
    assert shape.heads == shape.mapped == 0
    model = {"pattern": "nfsm lru+nfsm", "hidden_size": 16, "nfsm_heads": 2, "nfsm_states": 5}
    config = load_config(None, ["data.folder=x", "training.steps=1", f"model={model}".replace("'", "")])
    shape = shape_of(config, 64)
    assert (shape.states, shape.heads, shape.mapped) == (32, 4, 20)


def test_time_by_hand():
    """One GPU's share of the FLOP, and what does not fit beside it."""
    given = Assumptions(peak=1000.0, mfu=0.5, nvlink=100.0, network=10.0, reached=1.0, hop=0.0, far_hop=0.0, start=0.0)
    tokens = 16 * 64
    found = step(Case("", 8, small("training.batch_size=16")), SMALL, given)
    assert found.compute == pytest.approx(6000 * tokens / (8 * 500))
    assert found.gradients == pytest.approx(2 * 7 / 8 * 4000 / 100)
    assert found.shown == 0
    slow = step(Case("", 8, small("training.batch_size=16")), SMALL, Assumptions(peak=1e9, nvlink=100.0, reached=1.0))
    assert slow.shown == pytest.approx(70 - slow.compute / 2 * 2 / 3)
    far = step(Case("", 16, small("parallel={kind: fsdp, shard: 8}", "training.batch_size=16")), SMALL, given)
    assert far.gradients == pytest.approx(7 / 8 * 4000 / 100 + 2 * 1 / 2 * 4000 / 8 / 10)
    assert far.tokens_per_second == pytest.approx(tokens / far.seconds)
    ring = step(Case("", 16, small("training.batch_size=16")), SMALL, given)
    assert ring.gradients == pytest.approx(2 * 15 / 16 * 4000 / 80)  # eight network cards


def test_repeats_of_the_pattern_add_the_same_memory():
    model = "model={pattern: (rglru bmru)*3, hidden_size: 32, num_attention_heads: 2}"
    for parallel in ("{}", "{kind: fsdp}"):
        config = small(model, f"parallel={parallel}")
        config.data.prepare = load_config(RECIPE).data.prepare
        model_config = HybridLMConfig(**config.model, vocab_size=32768)
        micro = micro_batch_size(config, 4)
        whole = estimate_memory(config, model_config, micro, device_type="cuda", processes=4)
        assert memory(Case("", 4, config)) == pytest.approx(whole.total, rel=0.01)


def test_launches_of_the_page_are_understood():
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [line for language, block in blocks if not language for line in block.splitlines()]
    assert len(lines) == 6
    for line in lines:
        words = shlex.split(line)
        if words[0] == "torchrun":
            words = get_args_parser().parse_args(words[1:]).training_script_args
        else:
            words = words[words.index("scripts/pretrain.py") + 1 :]
        options = build_parser().parse_args(["pretrain", *words])
        load_config(ROOT / options.config, options.overrides)
    fields = re.findall(r"^  (\w+: \S+)", next(block for language, block in blocks if language == "yaml"), re.MULTILINE)
    assert len(fields) == 5
    assert small(f"parallel={{{', '.join(fields)}}}").parallel.shard == 8
