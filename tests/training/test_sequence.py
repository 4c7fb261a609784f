"""Runs whose sequences are shared by several processes: the curve of one process, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from launching import launch
from safetensors.torch import load_file

from hybridlm.errors import UserError
from hybridlm.training.config import config_yaml
from hybridlm.training.dryrun import dry_run
from hybridlm.training.loop import pretrain
from hybridlm.training.metrics import read_rows

SETTINGS = (
    "training={steps: 6, batch_size: 8, micro_batch_size: 2, ema_decay: 0.5, z_loss: 1e-2}",
    "write_penalty=1e-2",
    "validation={every: 3, at_start: true, max_windows: 7, batch_size: 3}",
    "model={pattern: rglru+cmru bmru mamba2 lru, hidden_size: 16, num_attention_heads: 2, mamba_d_head: 8, "
    "mamba_d_state: 4, learn_initial_state: true}",
    "logging={memory_every: 2, samples: {every: 6, prompts: [the sea], max_new_tokens: 4}}",
    "checkpoint.every=4",
)
SHARED = {
    "two": (2, ()),
    "four": (4, ("training.gradient_checkpointing=true",)),
    "dealt": (4, ("parallel.kind=fsdp", "training.gradient_checkpointing=true")),
}
"""Processes, of which two share each sequence, and what is set beside that."""


def run(config, folder: Path, ranks: int, script: str = "two_processes.py", *more: str) -> list[dict]:
    """Runs the recipe in so many processes; what each of them wrote down."""
    folder.mkdir()
    recipe = folder / "recipe.yaml"
    recipe.write_text(config_yaml(config), encoding="utf-8")
    done = launch([Path(__file__).with_name(script), recipe, folder, *more], ranks=ranks)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [json.loads((folder / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in range(ranks)]


def rows(config) -> list[dict]:
    return read_rows(config.run.path / "metrics.jsonl")


def test_processes_that_share_sequences_train_as_one(recipe, tmp_path):
    one = recipe(*SETTINGS, "run.name=one")
    pretrain(one)
    weights = load_file(one.run.path / "final" / "model.safetensors")
    for name, (ranks, more) in SHARED.items():
        shared = recipe(*SETTINGS, *more, "parallel.sequence=2", f"run.name={name}")
        facts = run(shared, tmp_path / name, ranks)
        assert all(fact["validation"] == facts[0]["validation"] for fact in facts)
        assert len(rows(shared)) == len(rows(one)) == 6 + 3
        for found, wanted in zip(rows(shared), rows(one), strict=True):
            # Adam divides small gradients by themselves: rounding of the first step is seen in the norms of the others.
            exact = {"rel": 1e-6 if found["step"] == 1 else 1e-3}
            assert found.get("grad_norm", 0) == pytest.approx(wanted.get("grad_norm", 0), **exact), (name, wanted)
            assert found.get("z_loss", 0) == pytest.approx(wanted.get("z_loss", 0), rel=1e-5), (name, wanted)
            for column in ("loss", "bits_per_byte", "bits_per_byte_ema"):
                assert found.get(column) == pytest.approx(wanted.get(column), abs=1e-5), (name, column, wanted)
            for column in ("memory", "n_tokens", "n_bytes", "tokens"):
                assert found.get(column) == wanted.get(column), (name, column)
        same = load_file(shared.run.path / "final" / "model.safetensors")
        for key, tensor in weights.items():
            torch.testing.assert_close(same[key], tensor, rtol=0, atol=1e-4)
        assert "the sea" in (shared.run.path / "samples.jsonl").read_text(encoding="utf-8")


def test_all_processes_name_the_one_that_computes_a_nan(recipe, tmp_path):
    """Though it goes on to the others: forward from the first part to the second, backward from the second."""
    settings = (
        "model={pattern: rglru bmru lru, hidden_size: 16, num_attention_heads: 2}",
        "training={steps: 6, batch_size: 4, micro_batch_size: 2}",
        "parallel.sequence=2",
    )
    config = recipe(*settings)
    facts = run(config, tmp_path / "facts", 2, "two_divergences.py", "0", "1")
    for kind, culprit in (("forward", 0), ("backward", 1)):
        message = facts[0][kind]
        assert facts[1][kind] == message
        assert "Stopped at step 2 of 6, before the weights were changed." in message
        report = json.loads((config.run.path.parent / kind / "diverged.json").read_text(encoding="utf-8"))
        wanted = (kind, culprit, "model.layers.1.mixer.cells.0")
        assert (report["kind"], report["process"], report["tensor"]) == wanted, message


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ("model={pattern: rglru attention gru+bmru, hidden_size: 16, num_attention_heads: 2}",),
            "parallel.sequence=2: layer 1: attention, layer 2: gru of model.pattern='rglru attention gru.bmru' needs",
        ),
        (("training.compile=true",), "parallel.sequence=2 with training.compile=true: .* Set training.compile=false"),
        (("data.sequence_length=4",), "a part of data.sequence_length=4 is 2 tokens, fewer than the 3 that a conv"),
        (("data.sequence_length=17",), "data.sequence_length=17 must be a multiple of parallel.sequence=2"),
    ],
)
def test_what_cannot_be_shared_is_refused(recipe, monkeypatch, settings, said):
    """Before anything is read or written; on one process nothing is shared."""
    config = recipe("parallel.sequence=2", *settings)
    dry_run(config, processes=1)
    with pytest.raises(UserError, match=said):
        dry_run(config, processes=2)
    assert not config.run.path.exists()


def test_the_memory_of_a_part_is_estimated(recipe):
    config = recipe("data.sequence_length=256", "parallel.sequence=2")
    shared, alone = (dry_run(config, processes=n).memory.activations for n in (2, 1))
    assert shared == pytest.approx(alone / 2, rel=0.02)
