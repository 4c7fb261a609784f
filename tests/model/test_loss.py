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


def naive(model, ids, labels, weight, count=None):
    """cross-entropy and mean of (log Z)^2 by autograd, in float64."""
    logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
    targets = labels[:, 1:].flatten()
    valid = targets != -100
    count = valid.sum() if count is None else count
    cross_entropy = nn.functional.cross_entropy(logits, targets, reduction="sum") / count
    squares = (torch.logsumexp(logits, 1)[valid] ** 2).sum() / count
    return cross_entropy + weight * squares, cross_entropy, squares


def exact_loss(logits, labels, vocab_size, num_items_in_batch=None, **kwargs):
    """transformers' own takes logits to fp32."""
    targets = labels[:, 1:].flatten()
    total = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets, reduction="sum")
    return total / ((targets != -100).sum() if num_items_in_batch is None else num_items_in_batch)


@pytest.mark.parametrize("keep", [False, True], ids=["chunked", "whole"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("count", [None, 17])
def test_z_loss_is_exact(small_chunks, keep, tied, count):
    model = make_model("rglru bmru", tie_word_embeddings=tied).double()
    ids, labels = batch(model)
    if keep:
        model.loss_function = exact_loss
    model.zero_grad()
    inputs = {} if count is None else {"num_items_in_batch": count}
    out = model(input_ids=ids, labels=labels, keep_logits=keep, z_loss=0.3, **inputs)
    out.loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    want, cross_entropy, squares = naive(model, ids, labels, 0.3, count)
    want.backward()
    assert squares > 1
    for found, expected in ((out.loss, want), (out.cross_entropy, cross_entropy), (out.z_loss, squares)):
        assert found.item() == pytest.approx(expected.item(), rel=1e-13)
    assert not out.cross_entropy.requires_grad
    assert not out.z_loss.requires_grad
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert (grads[name] - parameter.grad).abs().max() < 1e-12 * max(1.0, parameter.grad.abs().max()), name


@pytest.mark.parametrize("keep", [False, True], ids=["chunked", "whole"])
def test_z_loss_of_shifted_labels_and_of_parts(small_chunks, keep):
    """Two halves, each divided by the targets of both, are the whole; without a weight nothing is new."""
    model = make_model("rglru")
    ids, labels = batch(model)
    shifted = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
    count = int((shifted != -100).sum())
    with torch.no_grad():
        whole = model(input_ids=ids, labels=labels, keep_logits=keep, z_loss=0.5)
        halves = [
            model(
                input_ids=ids[i : i + 1], shift_labels=shifted[i : i + 1], keep_logits=keep, z_loss=0.5,
                num_items_in_batch=count,
            )
            for i in (0, 1)
        ]  # fmt: skip
        plain = model(input_ids=ids, labels=labels, keep_logits=keep)
    for name in ("loss", "cross_entropy", "z_loss"):
        assert sum(half[name] for half in halves).item() == pytest.approx(whole[name].item(), rel=1e-5)
    assert torch.equal(whole.cross_entropy, plain.loss)
    assert whole.loss.item() == pytest.approx((plain.loss + 0.5 * whole.z_loss).item(), rel=1e-6)
    assert type(plain).__name__ == "CausalLMOutputWithPast"


def test_z_loss_without_labels_is_refused():
    model = make_model("rglru")
    ids, labels = batch(model)
    with pytest.raises(ValueError, match=r"z_loss=0\.1"):
        model(input_ids=ids, z_loss=0.1)
    with pytest.raises(ValueError, match="z_loss=-1"):
        model(input_ids=ids, labels=labels, z_loss=-1.0)
    with pytest.raises(ValueError, match="did you mean 'z_loss'"):
        model(input_ids=ids, labels=labels, z_los=0.1)
