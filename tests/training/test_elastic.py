"""A run goes on in another number of processes, sharded or not, as if it had never stopped."""

import json
import shutil

import pytest
import torch
from launching_runs import data_of, rows_of, run_all, start
from safetensors.torch import load_file

from hybridlm import HybridLMForCausalLM, cli
from hybridlm.training.checkpoints import STATE, checkpoints, damage
from hybridlm.training.sharded_state import read_names, read_parts

SETTINGS = (
    "training={steps: 6, batch_size: 8, ema_decay: 0.5}",
    "optimizer={lr: 3e-3, eps: 1e-6}",
    "validation={every: 2, at_start: true, max_windows: 7, batch_size: 2}",
    "model={pattern: rglru bmru attention, hidden_size: 16, num_attention_heads: 2}",
    "logging={memory_every: 2, samples: {every: 2, max_new_tokens: 4, temperature: 0}}",
)
PATHS = {
    "ddp": ("ddp", "ddp", "ddp"),
    "fsdp": ("fsdp", "fsdp", "fsdp"),
    "to-fsdp": ("ddp", "ddp", "fsdp"),
    "to-ddp": ("fsdp", "ddp", "ddp"),
}
"""Kinds in 2, 1 and 4 processes; "to-fsdp": two copies of the model in the four."""


@pytest.fixture(scope="module")
def elastic(make_recipe, tmp_path_factory):
    """One process in one go; then every path, cut after steps 2 and 4."""
    folder = tmp_path_factory.mktemp("elastic")
    whole = make_recipe(folder, *SETTINGS, "run.name=whole")
    data = {"whole": data_of(run_all(folder / "whole", [whole], 1), "whole")}
    data |= {name: [] for name in PATHS}
    for leg, (world, stop) in enumerate([(2, 2), (1, 4), (4, None)]):
        configs = {}
        for name, kinds in PATHS.items():
            more = ["parallel.shard=2"] if name == "to-fsdp" and leg == 2 else []
            more += ["checkpoint.keep=3", f"run.name={name}", f"parallel.kind={kinds[leg]}"]
            configs[name] = make_recipe(folder, *SETTINGS, *more)
        stops = dict.fromkeys(PATHS, stop) if stop else None
        facts = run_all(folder / f"leg{leg}", list(configs.values()), world, stops)
        for name in PATHS:
            data[name] += data_of(facts, name)
    return whole, configs, data


@pytest.mark.parametrize("name", PATHS)
def test_two_one_four(elastic, name):
    whole, configs, data = elastic
    config = configs[name]
    assert data[name] == data["whole"]
    for rows, expected in zip(rows_of(config), rows_of(whole), strict=True):
        assert len(rows) == len(expected)
        for row, other in zip(rows, expected, strict=True):
            assert row["loss"] == pytest.approx(other["loss"], abs=1e-5)
            assert row.get("memory") == other.get("memory")
            for key in {"grad_norm", "bits_per_byte", "bits_per_byte_ema"} & other.keys():
                assert row[key] == pytest.approx(other[key], rel=1e-5)
    for folder in ("final", "final-ema", "best"):
        found, expected = (load_file(run.run.path / folder / "model.safetensors") for run in (config, whole))
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=0, atol=1e-5)
        files = [sorted(path.name for path in (run.run.path / folder).iterdir()) for run in (config, whole)]
        assert files[0] == files[1]
        assert [damage(run.run.path / folder) for run in (config, whole)] == [None, None]
    texts = [(run.run.path / "samples.jsonl").read_text(encoding="utf-8") for run in (config, whole)]
    assert texts[0] == texts[1]


def test_checkpoints_of_sharded_runs(elastic):
    """Folders for `from_pretrained`, with the optimizer and the average in parts, one file a process."""
    whole, configs, _ = elastic
    path = configs["fsdp"].run.path
    kept = {folder.name: sorted(file.name for file in (folder / STATE).iterdir()) for folder in checkpoints(path)}
    in_parts = ["checksums.json", "rng.pt", "sharded", "state.json"]
    assert kept == {
        "step-00000002": in_parts,
        "step-00000004": ["checksums.json", "ema.pt", "optimizer.pt", "rng.pt", "state.json"],  # of one process
        "step-00000006": in_parts,
    }
    names = [file.name for file in sorted((path / "checkpoints" / "step-00000006" / STATE / "sharded").iterdir())]
    assert names == [".metadata", *(f"__{rank}_0.distcp" for rank in range(4))]
    for folder in checkpoints(path):
        assert damage(folder) is None
        model = HybridLMForCausalLM.from_pretrained(folder)
        assert model.lm_head.weight is model.model.embed_tokens.weight
    configs_json = [json.loads((run / "final" / "config.json").read_text()) for run in (path, whole.run.path)]
    assert configs_json[0] == configs_json[1]


def test_parts_of_two_copies(elastic, make_recipe, tmp_path):
    """What four processes wrote that held two copies, of an end that came from ddp, is what those with one copy
    wrote; two processes make the final models of it again."""
    _, configs, _ = elastic
    folders = [checkpoints(configs[name].run.path)[-1] for name in ("to-fsdp", "fsdp")]
    copies, one = (whole_state(folder / STATE / "sharded") for folder in folders)
    assert copies.keys() == one.keys()
    kinds = {name.rpartition(".")[2] for name in one if name.startswith("optimizer.")}
    assert kinds == {"exp_avg", "exp_avg_sq", "step"}
    assert {"average.n_averaged", "average.module.model.norm.weight"} <= one.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(copies[name], tensor, rtol=1e-4, atol=1e-6)
    config = configs["to-fsdp"]
    made = {name: load_file(config.run.path / name / "model.safetensors") for name in ("final", "final-ema")}
    for name in made:
        shutil.rmtree(config.run.path / name)
    config.parallel.shard = None
    run_all(tmp_path / "again", [config], 2)
    for name, tensors in made.items():
        again = load_file(config.run.path / name / "model.safetensors")
        assert all(torch.equal(again[key], tensor) for key, tensor in tensors.items())


def whole_state(folder):
    tensors = {name: torch.zeros(size, dtype=dtype) for name, (size, dtype) in read_names(folder).items()}
    read_parts(folder, tensors)
    return tensors


def test_the_commands_read_a_sharded_checkpoint(elastic, capsys):
    _, configs, _ = elastic
    folder = checkpoints(configs["fsdp"].run.path)[-1]
    assert cli.main(["info", str(folder)]) == 0
    assert cli.main(["generate", str(folder), "the sea", "--max-new-tokens", "3"]) == 0
    assert "rglru bmru attention" in capsys.readouterr().out


def test_a_process_that_is_killed_while_the_checkpoint_is_written(make_recipe, tmp_path):
    """Its part is written, and no one is told: the checkpoint before it is whole, and the run goes on from there."""
    model = "model={pattern: rglru bmru attention, hidden_size: 16, num_attention_heads: 2, attention_dropout: 0.2}"
    more = ("parallel.kind=fsdp", "checkpoint.every=2", model)
    whole, *killed = (
        make_recipe(tmp_path, *SETTINGS, *more, f"run.name={name}") for name in ("whole", "main", "other")
    )
    for rank, config in enumerate(killed):
        fault = {config.run.name: {"rank": rank, "step": 4, "kind": "kill"}}
        done = start(tmp_path / f"killed{rank}", [config], 2, faults=fault, apart=True)
        assert done.returncodes[rank] == -9
        told = json.loads((tmp_path / f"killed{rank}" / f"rank{1 - rank}.json").read_text(encoding="utf-8"))
        error = told[config.run.name]["error"]
        assert "lost another process of the run" in error
        assert "step-00000002" in error
        assert [path.name for path in checkpoints(config.run.path)] == ["step-00000002"]
        assert any((config.run.path / "checkpoints").glob(".step-00000004.partial-*"))
    run_all(tmp_path / "again", [whole, *killed], 2)
    expected = load_file(whole.run.path / "final" / "model.safetensors")
    for config in killed:
        assert not any((config.run.path / "checkpoints").glob(".*"))
        found = load_file(config.run.path / "final" / "model.safetensors")
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


def test_a_disk_that_is_full_for_one_process(make_recipe, tmp_path):
    """The others hear of it, nothing is left behind, and the training goes on; at the end of a run it stops."""
    more = ("parallel.kind=fsdp", "checkpoint={every: 2, keep: 3}", "logging.samples.every=0")
    runs = {f"{how}{rank}": rank for how in ("on", "stopped") for rank in (0, 1)}
    configs = {name: make_recipe(tmp_path, *SETTINGS, *more, f"run.name={name}") for name in runs}
    faults = {name: {"rank": rank, "step": 4, "kind": "full"} for name, rank in runs.items()}
    facts = run_all(tmp_path / "facts", list(configs.values()), 2, {"stopped0": 4, "stopped1": 4}, faults)
    for name, config in configs.items():
        errors = [fact[name]["error"] for fact in facts]
        assert errors[0] == errors[1]
        kept = sorted(path.name for path in (config.run.path / "checkpoints").iterdir())
        assert [damage(path) for path in checkpoints(config.run.path)] == [None] * len(kept)
        if name.startswith("on"):
            assert errors[0] is None
            assert kept == ["step-00000002", "step-00000006"]
        else:
            assert errors[0].startswith("Stopped after step 4 of 6: ")
            assert "step-00000004 could not be written (File too large;" in errors[0]
            assert "The newest checkpoint is" in errors[0]
            assert kept == ["step-00000002"]
