"""The classification heads: what they read, their losses, and that padding on either side changes nothing."""

import pytest
import torch
from models import PATTERNS, make_ids, make_model
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from hybridlm import (
    HybridLMForQuestionAnswering,
    HybridLMForSequenceClassification,
    HybridLMForTokenClassification,
)

HEADS = [HybridLMForSequenceClassification, HybridLMForTokenClassification, HybridLMForQuestionAnswering]
PAD = 3  # a token that also stands in the texts


def make_head(kind, pattern, **options):
    """A head on the stack of `make_model`, in eval mode."""
    model = make_model(pattern, num_labels=4, **options)
    torch.manual_seed(5)
    head = kind(model.config)
    head.model = model.model
    for name, parameter in head.named_parameters():
        if not name.startswith("model."):
            torch.nn.init.normal_(parameter)
    return head.eval()


def padded(rows, left):
    """ids and mask (B, T) of token lists of several lengths."""
    width = max(len(row) for row in rows)
    ids, mask = torch.full((len(rows), width), PAD), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, place], mask[i, place] = row, 1
    return ids, mask


def outputs_of(model, *args, **kwargs):
    out = model(*args, **kwargs)
    return [out.logits] if "logits" in out else [out.start_logits, out.end_logits]


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("pattern", PATTERNS)
@torch.no_grad()
def test_padding_changes_nothing(pattern, kind, left):
    model = make_head(kind, pattern)
    rows = [make_ids(1, length, seed=length)[0] for length in (9, 4, 7)]
    rows[1][-1] = PAD  # the mask decides what is padding, not the token
    ids, mask = padded(rows, left)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    batch = outputs_of(model, ids, attention_mask=mask, position_ids=positions)
    for i, row in enumerate(rows):
        for got, want in zip(batch, outputs_of(model, row[None]), strict=True):
            mine = got[i] if kind is HybridLMForSequenceClassification else got[i][mask[i].bool()]
            assert (mine - want[0]).abs().max() <= 1e-4 * want.abs().max()
    if kind is HybridLMForQuestionAnswering:
        for logits in batch:
            assert mask.gather(1, logits.argmax(1, keepdim=True)).all()
            assert torch.isfinite(logits.log_softmax(1)[mask.bool()]).all()


@torch.no_grad()
def test_sequence_classification_without_a_mask():
    ids = make_ids(2, 8, seed=2)
    ids[ids == PAD] = PAD + 1
    longer = torch.cat([ids, torch.full((2, 3), PAD)], 1)
    model = make_head(HybridLMForSequenceClassification, "rglru bmru", pad_token_id=PAD)
    want = model(ids).logits
    assert torch.allclose(model(longer).logits, want, atol=1e-5)
    embeds = model.model.embed_tokens(longer)
    assert not torch.allclose(model(inputs_embeds=embeds).logits, want, atol=1e-3)  # nothing tells the padding
    mask = (longer != PAD).long()
    assert torch.allclose(model(inputs_embeds=embeds, attention_mask=mask).logits, want, atol=1e-5)
    plain = make_head(HybridLMForSequenceClassification, "rglru bmru")  # no pad token: every token counts
    assert torch.equal(plain(longer).logits, plain(longer, attention_mask=torch.ones_like(longer)).logits)


@torch.no_grad()
def test_sequence_classification_goes_on_from_a_cache():
    model, ids = make_head(HybridLMForSequenceClassification, "lru bmru attention"), make_ids(2, 12)
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    want = model(ids, attention_mask=mask).logits
    begun = model(ids[:, :5], attention_mask=mask[:, :5], use_cache=True)
    rest = model(ids[:, 5:], attention_mask=mask, past_key_values=begun.past_key_values).logits
    assert torch.allclose(rest, want, atol=1e-4)


def test_losses_are_those_of_torch():
    ids, functional = make_ids(3, 8), torch.nn.functional
    model = make_head(HybridLMForSequenceClassification, "rglru bmru")
    classes = torch.tensor([3, 0, 1])
    out = model(ids, labels=classes)
    assert torch.allclose(out.loss, functional.cross_entropy(out.logits, classes))
    model.config.problem_type = None
    several = torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]])
    out = model(ids, labels=several)
    assert torch.allclose(out.loss, functional.binary_cross_entropy_with_logits(out.logits, several))
    tokens = make_head(HybridLMForTokenClassification, "rglru bmru")
    labels = make_ids(3, 8, seed=4) % 4
    labels[0, :5] = -100
    out = tokens(ids, labels=labels)
    assert torch.allclose(out.loss, functional.cross_entropy(out.logits.flatten(0, 1), labels.flatten()))
    answers = make_head(HybridLMForQuestionAnswering, "rglru bmru")
    start, end = torch.tensor([0, 3, 2]), torch.tensor([1, 7, 2])
    out = answers(ids, start_positions=start, end_positions=end)
    want = functional.cross_entropy(out.start_logits, start) + functional.cross_entropy(out.end_logits, end)
    assert torch.allclose(out.loss, want / 2)


CLASSES, NUMBERS = torch.tensor([3, 0, 1, 2, 2, 1, 0]), torch.linspace(-2, 2, 28).reshape(7, 4)
LABELS = {
    "classes": (HybridLMForSequenceClassification, CLASSES),
    "some classes": (HybridLMForSequenceClassification, CLASSES.where(CLASSES != 1, -100)),
    "several": (HybridLMForSequenceClassification, (NUMBERS > 0.3).float()),
    "numbers": (HybridLMForSequenceClassification, NUMBERS),
    "tokens": (HybridLMForTokenClassification, make_ids(7, 8) % 4),
    "some tokens": (HybridLMForTokenClassification, (make_ids(7, 8) % 4).where(torch.ones(7, 8).tril(3) > 0, -100)),
}


@pytest.mark.parametrize("name", LABELS)
def test_parts_of_a_batch_add_up_to_its_loss(name):
    """With the number of labels in the batch, as Trainer counts them; the parts differ in how many they have."""
    kind, labels = LABELS[name]
    model, ids = make_head(kind, "rglru bmru"), make_ids(7, 8)
    model.config.problem_type = "regression" if name == "numbers" else None
    items = labels.ne(-100).sum()
    want = model(ids, labels=labels).loss
    for number in (items, int(items)):
        parts = [
            model(ids[part], labels=labels[part], num_items_in_batch=number).loss
            for part in (slice(0, 2), slice(2, 4), slice(4, 7))
        ]
        assert torch.allclose(sum(parts), want, rtol=1e-5)


def test_an_answer_on_padding_is_ignored():
    ids, mask = make_ids(3, 8), torch.ones(3, 8, dtype=torch.long)
    mask[0, :4] = 0
    mask[1, 5:] = 0
    model = make_head(HybridLMForQuestionAnswering, "rglru bmru")
    start, end = torch.tensor([5, 3, 2]), torch.tensor([6, 4, 2])

    def loss(rows, start, end):
        return model(ids[rows], attention_mask=mask[rows], start_positions=start, end_positions=end).loss

    want = loss([1, 2], start[1:], end[1:])
    for nowhere in (0, -1, 3, 8, 100):  # -1 is the first column, for transformers
        start[0] = end[0] = nowhere
        assert torch.allclose(loss([0, 1, 2], start, end), want)
    assert torch.allclose(loss([0, 1, 2], start[:, None], end[:, None]), want)
    start[1] = end[1] = 6
    assert torch.allclose(loss([0, 1, 2], start, end), loss([2], start[2:], end[2:]))
    none = loss([0, 1], start[:2], end[:2])
    none.backward()
    assert none.isnan()
    assert not model.qa_outputs.weight.grad.any()


def test_answers_in_parts_add_up_to_their_loss():
    model, ids = make_head(HybridLMForQuestionAnswering, "rglru bmru"), make_ids(3, 8)
    answers = {"start_positions": torch.tensor([0, 3, 2]), "end_positions": torch.tensor([1, 7, 2])}
    parts = [
        model(ids[part], **{name: at[part] for name, at in answers.items()}, num_items_in_batch=3).loss
        for part in (slice(0, 1), slice(1, 3))
    ]
    assert torch.allclose(sum(parts), model(ids, **answers).loss, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "auto"),
    [
        (HybridLMForSequenceClassification, AutoModelForSequenceClassification),
        (HybridLMForTokenClassification, AutoModelForTokenClassification),
        (HybridLMForQuestionAnswering, AutoModelForQuestionAnswering),
    ],
)
def test_a_language_model_becomes_a_head_and_a_head_is_loaded_as_it_was_saved(kind, auto, tmp_path):
    language = make_model("lru bmru attention")
    language.save_pretrained(tmp_path / "language")
    model, notes = auto.from_pretrained(
        tmp_path / "language", id2label={0: "no", 1: "yes", 2: "both"}, output_loading_info=True
    )
    assert isinstance(model, kind)
    assert all(not key.startswith("model.") for key in notes["missing_keys"])
    assert torch.equal(model.model.embed_tokens.weight, language.model.embed_tokens.weight)
    model.save_pretrained(tmp_path / "head")
    loaded = auto.from_pretrained(tmp_path / "head")
    assert loaded.config.id2label == {0: "no", 1: "yes", 2: "both"}
    ids = make_ids(2, 6)
    for got, want in zip(outputs_of(loaded.eval(), ids), outputs_of(model.eval(), ids), strict=True):
        assert torch.equal(got, want)


def test_dropout_acts_in_training_only():
    model, ids = make_head(HybridLMForSequenceClassification, "rglru", classifier_dropout=0.5), make_ids(2, 6)
    assert torch.equal(model(ids).logits, model(ids).logits)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)
    with pytest.raises(ValueError, match=r"classifier_dropout=1\.5: must be in \[0, 1\)"):
        make_head(HybridLMForSequenceClassification, "rglru", classifier_dropout=1.5)


@torch.no_grad()
def test_a_pad_token_inside_a_text_is_text():
    """Without a mask only those at the right end are padding."""
    model = make_head(HybridLMForSequenceClassification, "rglru bmru", pad_token_id=PAD)
    ids = make_ids(1, 9)
    ids[0, 3] = ids[0, 7] = ids[0, 8] = PAD
    want = model(ids[:, :7], attention_mask=torch.ones(1, 7, dtype=torch.long)).logits
    assert torch.equal(model(ids[:, :7]).logits, want)
    assert torch.allclose(model(ids).logits, want, atol=1e-5)
