"""Weights dealt out over processes compute what whole ones do; their parts on disk hold tensors and nothing else."""

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.utils import DistributedType
from launching import launch
from launching_runs import rows_of, run_all
from safetensors.torch import load_file
from torch import distributed
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save

from hybridlm.errors import UserError
from hybridlm.training.session import accelerator_session, on_every
from hybridlm.training.sharded_state import missing_parts, read_names, read_parts, write_parts
from hybridlm.training.sharding import refuse_unshardable, weight_mesh


def test_dealt_out_weights_compute_what_whole_ones_do(tmp_path):
    """bf16: the maps are gathered in bf16, which is all that autocast uses of them, and everything else in fp32."""
    done = launch([Path(__file__).with_name("two_shards.py"), tmp_path], ranks=2)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    for rank in (0, 1):
        facts = json.loads((tmp_path / f"rank{rank}.json").read_text(encoding="utf-8"))
        assert facts["sharded"] == [False, True]
        assert facts["groups"][0] == facts["groups"][1]
        assert any(name.endswith("gate_bias") for name in facts["groups"][1][1][1])  # a marked one
        assert facts["tied"]
        assert 0.49 < facts["share"] < 0.51
        maps = {name for name, dtype in facts["dtypes"].items() if dtype == "torch.bfloat16"}
        assert {name.split(".")[-2] for name in maps} >= {
            "in_proj",
            "out_proj",
            "candidate",
            "B",
            "q_proj",
            "down_proj",
        }
        wide = {name.split(".")[-1] for name in facts["dtypes"].keys() - maps}
        assert wide >= {
            "nu_log",
            "theta_log",
            "p",
            "alpha",
            "A_log",
            "dt_bias",
            "gate_bias",
            "gate_weight",
            "weight_hh",
        }
        assert not any(name.split(".")[-1] not in ("weight", "bias") for name in maps)
        assert not any(part in name for name in maps for part in ("norm", "conv", "embed", "lm_head"))
        for loss, norm in zip(facts["losses"], facts["norms"], strict=True):
            assert loss[1] == pytest.approx(loss[0], abs=1e-6)
            assert norm[1] == pytest.approx(norm[0], rel=1e-6)
        assert max(facts["apart"]) < 1e-6
        assert not facts["stale"]
        assert (facts["gathered"] is None) == (rank == 1)
        assert facts["random"]  # dropout goes on as if nothing had been saved
        assert facts["like"] == [True, facts["bytes"]]


def test_runs_in_bf16(make_recipe, tmp_path):
    """With everything that a step and a run can do besides; rounding of sums in another order is all that differs."""
    settings = (
        "training={steps: 4, batch_size: 8, micro_batch_size: 2, mixed_precision: bf16, ema_decay: 0.5}",
        "model={pattern: rglru bmru attention, hidden_size: 16, num_attention_heads: 2}",
        "optimizer={lr: 3e-3, eps: 1e-6}", "write_penalty=1e-2", "checkpoint.every=2",
        "validation={every: 2, max_windows: 7, batch_size: 2}", "logging={samples: {every: 4, max_new_tokens: 4}}",
    )  # fmt: skip
    more = {"ddp": "parallel.kind=ddp", "fsdp": "parallel.kind=fsdp", "again": "training.gradient_checkpointing=true"}
    kinds = {"ddp": "ddp", "fsdp": "fsdp", "again": "fsdp"}
    configs = {
        name: make_recipe(tmp_path, *settings, f"run.name={name}", f"parallel.kind={kinds[name]}", other)
        for name, other in more.items()
    }
    facts = run_all(tmp_path / "facts", list(configs.values()), 2)
    assert {fact[name]["error"] for fact in facts for name in configs} == {None}
    expected = rows_of(configs["ddp"])
    weights = load_file(configs["ddp"].run.path / "final" / "model.safetensors")
    for name in ("fsdp", "again"):
        for rows, others in zip(rows_of(configs[name]), expected, strict=True):
            for row, other in zip(rows, others, strict=True):
                assert row["loss"] == pytest.approx(other["loss"], abs=1e-4)
        found = load_file(configs[name].run.path / "final" / "model.safetensors")
        for key, tensor in weights.items():
            assert found[key].dtype == torch.float32
            torch.testing.assert_close(found[key], tensor, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.kind=muon", "optimizer.kind='muon'"),
        ("training.mixed_precision=fp16", "training.mixed_precision='fp16'"),
        ("training.compile=true", "training.compile=true"),
    ],
)
def test_what_does_not_go_with_dealt_out_weights(recipe, override, said):
    sharded = recipe(override, "parallel.kind=fsdp")
    with pytest.raises(UserError) as caught:
        refuse_unshardable(sharded, processes=2)
    assert str(caught.value).startswith(f"{said} does not go with parallel.kind='fsdp' in 2 processes: ")
    refuse_unshardable(sharded, processes=1)
    refuse_unshardable(recipe(override), processes=2)


def test_one_process_holds_everything(recipe):
    config = recipe("parallel.kind=fsdp")
    with accelerator_session(config) as accelerator:
        assert weight_mesh(config, accelerator) is None


def test_sharding_by_the_launcher_is_refused(recipe, monkeypatch):
    class Launched:
        num_processes, distributed_type = 1, DistributedType.FSDP

        def __init__(self, **_):
            pass

    monkeypatch.setattr("hybridlm.training.session.Accelerator", Launched)
    with pytest.raises(UserError, match=r"give the recipe parallel\.kind=fsdp and launch it with torchrun"):
        accelerator_session(recipe()).__enter__()


def test_an_error_of_any_process_is_everyones(recipe):
    with accelerator_session(recipe()) as accelerator:
        assert on_every(accelerator, lambda: 7) == 7
        with pytest.raises(UserError, match="Process 0: ZeroDivisionError"):
            on_every(accelerator, lambda: 1 / 0)


@pytest.fixture
def alone():
    """A group of one process."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield distributed.group.WORLD
    distributed.destroy_process_group()


TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.step": torch.tensor(3.0), "count": torch.tensor(7)}


def test_parts_come_back(alone, tmp_path):
    assert write_parts(tmp_path / "parts", TENSORS, alone) is None
    (tmp_path / "file").touch()
    assert isinstance(write_parts(tmp_path / "file", TENSORS, alone), OSError)
    assert read_names(tmp_path / "parts") == {name: (one.shape, one.dtype) for name, one in TENSORS.items()}
    found = {name: torch.zeros_like(one) for name, one in TENSORS.items()}
    read_parts(tmp_path / "parts", found)
    assert all(torch.equal(found[name], one) for name, one in TENSORS.items())
    assert str(tmp_path).encode() not in (tmp_path / "parts" / ".metadata").read_bytes()
    with pytest.raises(RuntimeError, match="other"):
        read_parts(tmp_path / "parts", {"other": torch.zeros(2)})
    assert missing_parts(tmp_path / "parts") == []
    (tmp_path / "parts" / "__0_0.distcp").unlink()
    assert missing_parts(tmp_path / "parts") == ["__0_0.distcp"]
    with pytest.raises(FileNotFoundError):
        read_parts(tmp_path / "parts", found)


class _Harm:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("harm", ["code", "object", "outside", "nothing", "torn"])
def test_a_description_runs_no_code(alone, tmp_path, monkeypatch, harm):
    monkeypatch.chdir(tmp_path)
    write_parts(tmp_path / "parts", TENSORS, alone)
    description = tmp_path / "parts" / ".metadata"
    if harm == "code":
        description.write_bytes(pickle.dumps({"a": _Harm()}))
    elif harm == "object":  # torch would read it with a pickle of its own
        save({"a": [1, 2]}, storage_writer=FileSystemWriter(tmp_path / "objects"), process_group=alone)
        description = description.replace(tmp_path / "kept")
        (tmp_path / "objects" / ".metadata").rename(tmp_path / "parts" / ".metadata")
    elif harm == "outside":
        found = FileSystemReader(tmp_path / "parts").read_metadata()
        entries = found.storage_data.items()
        found.storage_data = {key: replace(stored, relative_path="../a.distcp") for key, stored in entries}
        (tmp_path / "parts" / "__0_0.distcp").rename(tmp_path / "a.distcp")
        description.write_bytes(pickle.dumps(found))
    elif harm == "nothing":
        description.write_bytes(pickle.dumps([1]))
    else:
        description.write_bytes(description.read_bytes()[:-50])
    for read in (read_names, missing_parts, lambda folder: read_parts(folder, {"a.step": torch.zeros(())})):
        with pytest.raises(ValueError, match=r"\.metadata"):
            read(tmp_path / "parts")
    assert not (tmp_path / "harm").exists()
