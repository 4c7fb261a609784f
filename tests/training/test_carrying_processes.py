"""data.carry_state in several processes: each has the states of its rows, and any number goes on."""

import pytest
import torch
from launching_runs import data_of, rows_of, run_all
from safetensors.torch import load_file

from hybridlm.errors import UserError
from hybridlm.training.checkpoints import STATE, checkpoints
from hybridlm.training.parallel import data_places
from hybridlm.training.state import CARRIED

SETTINGS = (
    "data.carry_state=true", "training={steps: 6, batch_size: 8, micro_batch_size: 2}", "checkpoint.keep=3",
    "model={pattern: rglru+bmru mamba2 nfsm, hidden_size: 16, mamba_d_head: 8, learn_initial_state: true}",
    "optimizer={lr: 3e-3, eps: 1e-6}", "exploration={start: 0.0}", "epsilon={start: 0.0}",
    "data.sequence_length=32",
)  # fmt: skip


@pytest.fixture(scope="module")
def elastic(make_recipe, tmp_path_factory):
    """One process in one go; two, one and two again, cut after steps 2 and 4; and two that are one model."""
    folder = tmp_path_factory.mktemp("elastic")
    configs = {
        name: make_recipe(folder, *SETTINGS, f"run.name={name}", f"parallel.kind={'fsdp' if name == 'fsdp' else 'ddp'}")
        for name in ("whole", "ddp", "fsdp")
    }
    data = {"whole": data_of(run_all(folder / "whole", [configs["whole"]], 1), "whole"), "ddp": [], "fsdp": []}
    for leg, (world, stop) in enumerate([(2, 2), (1, 4), (2, None)]):
        stops = dict.fromkeys(("ddp", "fsdp"), stop) if stop else None
        facts = run_all(folder / f"leg{leg}", [configs["ddp"], configs["fsdp"]], world, stops)
        for name in ("ddp", "fsdp"):
            assert {fact[name]["error"] for fact in facts} == {None}
            data[name] += data_of(facts, name)
    return configs, data


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_two_one_two(elastic, name):
    configs, data = elastic
    assert data[name] == data["whole"]
    (rows, _), (expected, _) = rows_of(configs[name]), rows_of(configs["whole"])
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected], abs=1e-5)
    found, wanted = (load_file(configs[run].run.path / "final" / "model.safetensors") for run in (name, "whole"))
    for key, tensor in wanted.items():
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=1e-5)
    files = [checkpoints(configs[run].run.path)[-1] / STATE / CARRIED for run in (name, "whole")]
    states, others = (load_file(file) for file in files)
    assert states.keys() == others.keys()
    for key, tensor in others.items():  # of all rows, in their order
        torch.testing.assert_close(states[key], tensor, rtol=1e-3, atol=1e-4)
    assert not torch.equal(others["layers.0.0.s"][0], others["layers.0.0.s"][4])


def test_shared_sequences_are_refused(recipe):
    config = recipe("data.carry_state=true", "parallel.sequence=2")
    with pytest.raises(UserError, match=r"parallel\.sequence=2 with data\.carry_state=true"):
        data_places(config, 2)
    assert data_places(config, 1) == 1
