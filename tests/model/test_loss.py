"""The loss without logits: transformers' own, in value and gradient."""

import pytest
import torch
from models import make_model
from torch import nn

from hybridlm.model import loss_hybridlm

LENGTH = 41


@pytest.fixture
def small_chunks(monkeypatch):
    """82 tokens in pieces of 16, the last of them short."""
    monkeypatch.setattr(loss_hybridlm, "CHUNK", 16)


def batch(model):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (2, LENGTH), generator=generator)
    labels = ids.clone()
    labels[0, :20] = labels[1, 5:9] = -100
    return ids, labels


def result(model, keep, autocast=False, **inputs):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model(**inputs, keep_logits=keep)
    assert (out.logits is None) == (not keep)
    out.loss.backward()
    return out.loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("given", ["labels", "shift_labels", "num_items_in_batch"])
def test_equals_the_loss_on_logits(small_chunks, tied, given):
    model = make_model("rglru", tie_word_embeddings=tied).double()
    ids, labels = batch(model)
    inputs = {"input_ids": ids, "labels": labels}
    if given == "shift_labels":
        inputs = {"input_ids": ids, "shift_labels": nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]}
    elif given == "num_items_in_batch":
        inputs["num_items_in_batch"] = torch.tensor(17)
    loss, grads = result(model, False, **inputs)
    # Not transformers' function here: it takes the logits to fp32.
    targets = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:].flatten()
    model.zero_grad()
    total = nn.functional.cross_entropy(model(input_ids=ids).logits.flatten(0, 1), targets, reduction="sum")
    want = total / inputs.get("num_items_in_batch", (targets != -100).sum())
    want.backward()
    assert loss == pytest.approx(want.item(), abs=1e-12)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert (grads[name] - parameter.grad).abs().max() < 1e-13, name


def test_equals_transformers_loss(small_chunks):
    model = make_model("rglru")
    ids, labels = batch(model)
    (loss, grads), (want, want_grads) = (result(model, keep, input_ids=ids, labels=labels) for keep in (False, True))
    assert loss == pytest.approx(want, rel=1e-6)
    assert grads.keys() == want_grads.keys()
    for name, grad in want_grads.items():
        assert (grads[name] - grad).abs().max() < 1e-5 * max(1.0, grad.abs().max().item()), name


def test_under_autocast_it_is_as_near_to_the_truth(small_chunks):
    """Products in bf16, everything else in fp32: no farther from the exact gradients than with logits."""
    model = make_model("rglru", vocab_size=300)
    ids, labels = batch(model)
    inputs = {"input_ids": ids, "labels": labels}
    (exact, exact_grads) = result(model, True, **inputs)
    (loss, grads), (other, other_grads) = (result(model, keep, autocast=True, **inputs) for keep in (False, True))
    assert abs(loss - exact) <= 1.5 * abs(other - exact) + 1e-4

    def distance(found):
        return sum((found[name] - grad).norm() ** 2 for name, grad in exact_grads.items()) ** 0.5

    assert 0 < distance(grads) <= 1.1 * distance(other_grads)


def test_all_targets_ignored(small_chunks):
    """Divided by the number of items that it is told, the loss is 0; alone it is NaN, as with logits."""
    model = make_model("rglru")
    ids, labels = batch(model)
    labels.fill_(-100)
    loss, grads = result(model, False, input_ids=ids, labels=labels, num_items_in_batch=5)
    assert loss == 0
    assert all(not grad.any() for grad in grads.values())
    assert torch.isnan(model(input_ids=ids, labels=labels, keep_logits=False).loss)


def test_without_gradients(small_chunks):
    model = make_model("rglru")
    ids, labels = batch(model)
    with torch.no_grad():
        loss = model(input_ids=ids, labels=labels, keep_logits=False).loss
        assert loss == pytest.approx(model(input_ids=ids, labels=labels).loss.item(), rel=1e-6)


class _Scaled(nn.Linear):
    """A head that is not what its weight says, as an adapter makes one."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_another_head_and_another_loss_are_heard():
    model = make_model("rglru", tie_word_embeddings=False)
    ids, labels = batch(model)
    head = _Scaled(model.config.hidden_size, model.config.vocab_size, bias=False)
    plain, model.lm_head = model.lm_head, head
    assert result(model, False, input_ids=ids, labels=labels)[0] == result(model, True, input_ids=ids, labels=labels)[0]
    model.lm_head = plain
    handle = plain.register_forward_hook(lambda module, args, out: 3 * out)
    assert result(model, False, input_ids=ids, labels=labels)[0] == result(model, True, input_ids=ids, labels=labels)[0]
    handle.remove()
    model.loss_function = lambda logits, labels, vocab_size, **kwargs: logits.square().mean()
    assert result(model, False, input_ids=ids, labels=labels)[0] == result(model, True, input_ids=ids, labels=labels)[0]


@pytest.mark.parametrize(
    "extra", [{}, {"labels": None}, {"labels": torch.zeros(1, 4, dtype=torch.long), "logits_to_keep": 2}]
)
def test_nothing_left_to_return_is_refused(extra):
    model = make_model("rglru")
    with pytest.raises(ValueError, match="keep_logits=False"):
        model(input_ids=torch.zeros(1, 4, dtype=torch.long), keep_logits=False, **extra)
