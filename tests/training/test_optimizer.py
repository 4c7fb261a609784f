"""Parameter groups: each parameter once, decay only where it belongs, Muon for hidden matrices alone."""

import copy
import re

import pytest
import torch
from accelerate.utils import DistributedType

from hybridlm import HybridLMConfig, HybridLMForCausalLM
from hybridlm.errors import UserError
from hybridlm.training import session
from hybridlm.training.muon import MuonAdamW, refuse_sharded_muon
from hybridlm.training.optimizer import build_optimizer, parameter_groups
from hybridlm.training.sections import MuonConfig, OptimizerConfig


def model_of(**keywords) -> HybridLMForCausalLM:
    torch.manual_seed(0)
    return HybridLMForCausalLM(HybridLMConfig(vocab_size=40, hidden_size=16, num_attention_heads=2, **keywords))


def names_in(model, group) -> set[str]:
    held = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in held}


@pytest.mark.parametrize("tied", [True, False])
def test_groups_hold_everything_once(tied):
    model = model_of(pattern="rglru bmru attention lru", tie_word_embeddings=tied)
    groups = {group["name"]: group for group in parameter_groups(model, 0.3)}
    decay, rest = (names_in(model, groups[name]) for name in ("decay", "no_decay"))
    assert not decay & rest
    assert decay | rest == {name for name, _ in model.named_parameters()}
    assert (groups["decay"]["weight_decay"], groups["no_decay"]["weight_decay"]) == (0.3, 0.0)
    assert "model.embed_tokens.weight" in rest
    assert ("lm_head.weight" in decay) is not tied
    assert all(parameter.ndim >= 2 for parameter in groups["decay"]["params"])
    flagged = {name for name, parameter in model.named_parameters() if getattr(parameter, "_no_weight_decay", False)}
    assert flagged
    assert flagged <= rest


def test_frozen_parameters_are_left_out():
    model = model_of(pattern="lru")
    model.model.embed_tokens.weight.requires_grad_(False)
    groups = parameter_groups(model, 0.1)
    assert all(parameter.requires_grad for group in groups for parameter in group["params"])


def test_settings_reach_the_optimizer():
    model = model_of(pattern="bmru")
    optimizer = build_optimizer(model, OptimizerConfig(lr=0.5, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.2))
    for group, decay in zip(optimizer.param_groups, (0.2, 0.0), strict=True):
        assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (0.5, (0.8, 0.9), 1e-6, decay)


EVERY_MIXER = "rglru bmru attention lru mingru acmru fqbmru cmru gru lstm mamba2"


@pytest.mark.parametrize("tied", [True, False])
def test_muon_gets_the_hidden_matrices(tied):
    model = model_of(pattern=EVERY_MIXER, mamba_d_head=8, tie_word_embeddings=tied)
    groups = {group["name"]: group for group in parameter_groups(model, 0.3, muon=0.2)}
    muon, decay, rest = (names_in(model, groups[name]) for name in ("muon", "decay", "no_decay"))
    assert (groups["muon"]["weight_decay"], groups["decay"]["weight_decay"]) == (0.2, 0.3)
    assert not muon & decay | muon & rest | decay & rest
    assert muon | decay | rest == {name for name, _ in model.named_parameters()}
    projections = {
        f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)
    } - {"lm_head.weight"}
    gates = {name for name, _ in model.named_parameters() if re.search(r"weight_[ih]h$", name)}
    assert len(gates) == 4
    assert muon == projections | gates
    heads = set() if tied else {"lm_head.weight"}
    assert {name for name in decay if not re.search(r"conv\.weight$|gate_weight$", name)} == heads
    assert any(name.endswith("conv.weight") for name in decay)


def muon_of(model, **keywords) -> MuonAdamW:
    optimizer = build_optimizer(model, OptimizerConfig(kind="muon", lr=0.1, **keywords))
    assert isinstance(optimizer, MuonAdamW)
    return optimizer


def one_step(model, optimizer, seed: int) -> None:
    ids = torch.randint(40, (2, 9), generator=torch.Generator().manual_seed(seed))
    model(ids, labels=ids, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_step_is_that_of_both():
    """What torch's two optimizers make of their own halves of the model."""
    model = model_of(pattern="rglru bmru")
    twin = copy.deepcopy(model)
    optimizer = muon_of(model, weight_decay=0.2, muon=MuonConfig(momentum=0.8, ns_steps=3))
    by_name = dict(twin.named_parameters())
    groups = [
        {**group, "params": [by_name[name] for name, _ in model.named_parameters() if name in names_in(model, group)]}
        for group in optimizer.param_groups
    ]
    assert [group["weight_decay"] for group in groups] == [0.2, 0.2, 0.0]
    muon = torch.optim.Muon(
        groups[0]["params"], lr=0.1, weight_decay=0.2, momentum=0.8, ns_steps=3, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(
        [{"params": group["params"], "weight_decay": group["weight_decay"]} for group in groups[1:]],
        lr=0.1, betas=(0.9, 0.95), fused=True,
    )  # fmt: skip
    for seed in (0, 1):
        ids = torch.randint(40, (2, 9), generator=torch.Generator().manual_seed(seed))
        twin(ids, labels=ids, use_cache=False).loss.backward()
        for part in (muon, adamw):
            part.step()
            part.zero_grad()
        one_step(model, optimizer, seed)
    assert all(torch.equal(p, by_name[name]) for name, p in model.named_parameters())


def test_muon_goes_on_from_its_saved_state():
    model = model_of(pattern="bmru")
    optimizer = muon_of(model)
    one_step(model, optimizer, 0)
    twin, other = copy.deepcopy(model), copy.deepcopy(model)
    again, fresh = muon_of(twin), muon_of(other)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for trained, by in ((model, optimizer), (twin, again), (other, fresh)):
        for group in by.param_groups:
            group["lr"] = 0.05  # reaches both halves, also after loading
        one_step(trained, by, 1)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
    assert not any(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_muon_leaves_frozen_matrices_out():
    model = model_of(pattern="bmru")
    for parameter in model.model.layers.parameters():
        parameter.requires_grad_(parameter.ndim != 2)
    with pytest.raises(UserError, match=r"optimizer\.kind='muon': the model has no hidden matrix to train"):
        build_optimizer(model, OptimizerConfig(kind="muon"))


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_muon_is_refused_where_matrices_are_sharded(kind):
    with pytest.raises(UserError, match=rf"optimizer\.kind='muon' does not work under {kind.value}.*kind=adamw"):
        refuse_sharded_muon("muon", kind)
    refuse_sharded_muon("adamw", kind)
    refuse_sharded_muon("muon", DistributedType.MULTI_GPU)


def test_a_session_refuses_muon_under_fsdp_by_its_name(recipe, monkeypatch):
    class Sharded(session.Accelerator):
        distributed_type = DistributedType.FSDP

    monkeypatch.setattr(session, "Accelerator", Sharded)
    for kind, says in (("muon", "Muon|muon"), ("adamw", "launcher asks for FSDP")):
        with pytest.raises(UserError, match=says), session.accelerator_session(recipe(f"optimizer.kind={kind}")):
            pass
