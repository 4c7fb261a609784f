"""One optimizer step: its loss is nats per target however it is cut up, and it never takes a bad gradient."""

import copy
from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator

from hybridlm import HybridLMConfig, HybridLMForCausalLM
from hybridlm.training.guard import DivergedError
from hybridlm.training.session import accelerator_session
from hybridlm.training.step import Terms, backward, optimizer_step, valid_targets


@pytest.fixture
def accelerator(recipe) -> Iterator[Accelerator]:
    with accelerator_session(recipe()) as accelerator:
        yield accelerator


@pytest.fixture
def model() -> HybridLMForCausalLM:
    torch.manual_seed(0)
    config = HybridLMConfig(pattern="rglru bmru", vocab_size=30, hidden_size=16, num_attention_heads=2)
    return HybridLMForCausalLM(config).train()


def batch_of(rows: int, ignored: list[int]) -> dict[str, torch.Tensor]:
    """`ignored[r]` targets of row r are masked."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(30, (rows, 9), generator=generator)
    labels = ids[:, 1:].clone()
    for row, count in enumerate(ignored):
        labels[row, :count] = -100
    return {"input_ids": ids[:, :-1], "shift_labels": labels, "position_ids": torch.arange(8).expand(rows, 8)}


def gradients_of(accelerator, model, batches, **keywords) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = backward(accelerator, model, batches, valid_targets(accelerator, batches), **keywords)
    return loss.cross_entropy, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("terms", [Terms(), Terms(z_loss=0.3)])
@pytest.mark.parametrize("ignored", [[0, 0, 0, 0], [7, 0, 3, 8]])
def test_accumulation_equals_one_big_batch(accelerator, model, ignored, terms):
    batch = batch_of(4, ignored)
    parts = [{name: tensor[at : at + 1] for name, tensor in batch.items()} for at in range(4)]
    whole_loss, whole = gradients_of(accelerator, model, [batch], terms=terms)
    loss, accumulated = gradients_of(accelerator, model, parts, terms=terms)
    torch.testing.assert_close(loss, whole_loss, rtol=1e-5, atol=1e-6)
    assert accumulated.keys() == whole.keys() == dict(model.named_parameters()).keys()
    for name in whole:
        torch.testing.assert_close(accumulated[name], whole[name], rtol=1e-4, atol=1e-6)


def test_loss_is_nats_per_valid_target(accelerator, model):
    batch = batch_of(3, [7, 0, 2])
    loss, _ = gradients_of(accelerator, model, [batch])
    with torch.no_grad():
        logits = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    log_probs = logits.log_softmax(-1)
    nats = [-log_probs[r, t, y] for r in range(3) for t, y in enumerate(batch["shift_labels"][r].tolist()) if y != -100]
    assert len(nats) == valid_targets(accelerator, [batch]) == 24 - 9
    torch.testing.assert_close(loss, torch.stack(nats).mean(), rtol=1e-5, atol=1e-6)


def test_z_loss_adds_its_gradient_and_not_its_value(accelerator, model):
    batch = batch_of(3, [7, 0, 2])
    loss, plain = gradients_of(accelerator, model, [batch])
    same_loss, penalised = gradients_of(accelerator, model, [batch], terms=Terms(z_loss=0.5))
    assert same_loss == loss
    model.zero_grad()
    logits = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    squares = torch.logsumexp(logits, -1)[batch["shift_labels"] != -100].square().mean()
    (0.5 * squares).backward()
    for name, parameter in model.named_parameters():
        extra = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(penalised[name], plain[name] + extra, rtol=1e-4, atol=1e-6)
    model.zero_grad()
    found = backward(accelerator, model, [batch], 15, Terms(z_loss=0.5))
    assert found.z_loss is not None
    torch.testing.assert_close(found.z_loss, squares.detach(), rtol=1e-5, atol=1e-6)


def test_a_step_without_targets_has_loss_zero(accelerator, model):
    loss, gradients = gradients_of(accelerator, model, [batch_of(2, [8, 8])])
    assert loss == 0
    assert all(bool((gradient == 0).all()) for gradient in gradients.values())


def test_write_penalty_adds_its_gradient_and_not_its_value(accelerator, model):
    batch = batch_of(2, [0, 0])
    model.record_writes()
    loss, plain = gradients_of(accelerator, model, [batch])
    same_loss, penalised = gradients_of(accelerator, model, [batch], terms=Terms(write_penalty=10.0))
    assert same_loss == loss
    changed = [name for name in plain if not torch.equal(plain[name], penalised[name])]
    assert changed
    model.zero_grad()
    model(**batch, use_cache=False, num_items_in_batch=16)
    penalty = model.write_penalty()
    assert penalty is not None
    (10.0 * penalty).backward()
    for name, parameter in model.named_parameters():
        extra = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(penalised[name], plain[name] + extra, rtol=1e-4, atol=1e-6)


def test_clipping_scales_the_gradient_and_reports_the_norm_before(accelerator, model):
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = copy.deepcopy(model.state_dict())
    loss, gradients = gradients_of(accelerator, model, [batch_of(2, [0, 0])])
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    prepared = accelerator.prepare(optimizer)
    result = optimizer_step(accelerator, model, prepared, loss, clip_norm=float(norm) / 4)
    assert result.loss == loss.item()
    assert result.grad_norm == pytest.approx(float(norm), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(before[name] - parameter.detach(), gradients[name] / 4, rtol=1e-3, atol=1e-6)
        assert parameter.grad is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_numbers_stop_before_the_update(accelerator, model, bad):
    optimizer = accelerator.prepare(torch.optim.SGD(model.parameters(), lr=1.0))
    loss, _ = gradients_of(accelerator, model, [batch_of(2, [0, 0])])
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(DivergedError, match="first tensor that is not finite is the loss"):
        optimizer_step(accelerator, model, optimizer, torch.tensor(bad), 1.0)
    model.model.layers[1].mlp.down_proj.weight.grad[0, 0] = bad
    name = "model.layers.1.mlp.down_proj.weight"
    with pytest.raises(DivergedError, match=f"gradient of {name}"):
        optimizer_step(accelerator, model, optimizer, loss, 1.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
