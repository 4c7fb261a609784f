"""The same global batch gives the same curve, however many processes and micro-batches it is dealt out over."""

import pytest
import torch
from launching_runs import data_of, rows_of, run_all
from safetensors.torch import load_file

SETTINGS = (
    "training={steps: 3, batch_size: 48, z_loss: 1e-2}",
    "optimizer={lr: 1e-2, eps: 1e-6, clip_norm: 0.5}",
    "validation={every: 2, at_start: true, max_windows: 7, batch_size: 2}",
    "model={pattern: rglru bmru attention, hidden_size: 16, num_attention_heads: 2}",
    "logging.memory_every=1",
    "write_penalty=0.1",
)
"""eps: the updates of weights that hardly have a gradient are not made of rounding. clip_norm: below every norm."""
SHARDED = {
    2: [(2, "parallel.reshard=false"), (4, "training.gradient_checkpointing=true")],
    3: [(1, "parallel.reshard=true")],
    4: [(4, "parallel.reshard=true"), (1, "parallel.shard=2")],
}
"""Processes -> (micro-batches of each, another setting)."""


GROUPS = 4
"""Of weights that travel together: three layers, and the rest."""


def collectives(name: str, world: int, other: str) -> dict[str, int]:
    """Of one step: sums over all processes (targets, losses, memory), and what weights, gradients, their norm take."""
    kind, parts = name.split("-")
    if world == 1:
        return {}
    if kind == "ddp":
        return {"allreduce_": 3 + 1}  # all gradients fit into one bucket
    again = 0 if other == "parallel.reshard=false" else GROUPS - 1  # the layers' weights once more, for the backward
    between = GROUPS if other == "parallel.shard=2" else 0  # gradients once more, between two copies of the model
    return {
        "_allgather_base_": int(parts) * (GROUPS + again),
        "_reduce_scatter_base_": GROUPS,
        "allreduce_": 3 + between,
        "all_reduce": 1,
    }


@pytest.fixture(scope="module")
def one(make_recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    config = make_recipe(folder, *SETTINGS, "run.name=one")
    facts = run_all(folder / "facts", [config], 1)
    return rows_of(config), data_of(facts, "one"), load_file(config.run.path / "final" / "model.safetensors")


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_the_same_curve(one, make_recipe, tmp_path, world):
    """Micro-batches differ in how many targets they have."""
    dealt = {f"ddp-{parts}": (parts, "parallel.kind=ddp") for parts in (1, 2, 4)}
    for parts, other in SHARDED.get(world, []):
        dealt[f"fsdp-{parts}"] = parts, other
    configs = [
        make_recipe(
            tmp_path, *SETTINGS, f"run.name={name}", f"parallel.kind={name.partition('-')[0]}", other,
            f"training.micro_batch_size={48 // world // parts}",
        )
        for name, (parts, other) in dealt.items()
    ]  # fmt: skip
    facts = run_all(tmp_path / "facts", configs, world)
    (training, validation), data, weights = one
    for config in configs:
        name = config.run.name
        found, validated = rows_of(config)
        assert data_of(facts, name) == data
        assert [len(step) for step in facts[0][name]["ids"]] == [48 // world] * 3
        for step in facts[0][name]["collectives"]:
            step.pop("broadcast_", None)  # DDP's, of buffers
            assert step == collectives(name, world, dealt[name][1]), name
        for row, expected in zip(found, training, strict=True):
            for key in ("loss", "z_loss"):
                assert row[key] == pytest.approx(expected[key], abs=1e-5), (name, row["step"], key)
            assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5), (name, row["step"])
            assert row["memory"] == expected["memory"]
        for row, expected in zip(validated, validation, strict=True):
            assert (row["n_tokens"], row["windows"]) == (expected["n_tokens"], expected["windows"])
            assert row["bits_per_byte"] == pytest.approx(expected["bits_per_byte"], abs=1e-6)
        same = load_file(config.run.path / "final" / "model.safetensors")
        assert same.keys() == weights.keys()
        for key, tensor in weights.items():
            torch.testing.assert_close(same[key], tensor, rtol=0, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
