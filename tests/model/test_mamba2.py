"""Mamba-2: the chunked form against its recurrence, and the whole model against transformers' with the same weights."""

import pytest
import torch
from models import make_ids, make_model
from safetensors.torch import load_file, save_file
from transformers import DynamicCache, Mamba2Config, Mamba2ForCausalLM

from hybridlm.convert import from_mamba2
from hybridlm.errors import UserError
from hybridlm.model.ssd_hybridlm import CHUNK, ssd_scan

H, P, G, K = 4, 3, 2, 5


def draw(rows, length, seed=0):
    """x, dt, A, B, C and a state, fp64, with decays from nearly 1 to nearly 0."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    dt = torch.exp(normal(rows, length, H) - 1)
    A = -torch.tensor([0.01, 0.3, 2.0, 40.0], dtype=torch.float64)
    return (
        normal(rows, length, H, P),
        dt,
        A,
        normal(rows, length, G, K),
        normal(rows, length, G, K),
        normal(rows, H, P, K),
    )


def loop(x, dt, A, B, C, state, reset, mask):
    """The recurrence, token by token."""
    ys = []
    for t in range(x.shape[1]):
        b, c = (t_.repeat_interleave(H // G, dim=1) for t_ in (B[:, t], C[:, t]))
        before = state
        if reset is not None:
            before = state.masked_fill(reset[:, t, None, None, None], 0.0)
        decay = torch.exp(dt[:, t] * A)[..., None, None]
        new = decay * before + (dt[:, t, :, None] * x[:, t])[..., None] * b[:, :, None, :]
        state = new if mask is None else torch.where(mask[:, t, None, None, None], new, state)
        ys.append((state * c[:, :, None, :]).sum(-1))
    return torch.stack(ys, 1), state


@pytest.mark.parametrize("length", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7])
@pytest.mark.parametrize("flags", ["plain", "reset", "mask", "both"])
def test_the_chunked_form_equals_the_recurrence(length, flags):
    drawn, generator = draw(2, length), torch.Generator().manual_seed(3)
    reset = mask = None
    if flags in ("reset", "both"):
        reset = torch.rand(2, length, generator=generator) < 0.1
        reset[0, 0] = True
    if flags in ("mask", "both"):
        mask = torch.rand(2, length, generator=generator) < 0.7
    if flags == "both":
        reset = reset & mask
    y, state = ssd_scan(*drawn, reset=reset, mask=mask)
    want, last = loop(*drawn, reset, mask)
    valid = torch.ones(2, length, dtype=torch.bool) if mask is None else mask
    assert torch.allclose(y[valid], want[valid], atol=1e-10)
    assert torch.allclose(state, last, atol=1e-10)


def test_gradients_of_the_chunked_form_equal_those_of_the_recurrence():
    drawn, weight = draw(1, CHUNK + 9), torch.randn(1, CHUNK + 9, H, P, dtype=torch.float64)
    reset = torch.zeros(1, CHUNK + 9, dtype=torch.bool)
    reset[0, [0, 20, CHUNK]] = True
    mask = torch.ones_like(reset)
    mask[0, 30:35] = False
    found = []
    for scan in (lambda *t: ssd_scan(*t, reset=reset, mask=mask), lambda *t: loop(*t, reset, mask)):
        inputs = [t.clone().requires_grad_() for t in drawn]
        y, state = scan(*inputs)
        ((y * weight * mask[..., None, None]).sum() + state.sum()).backward()
        found.append([t.grad for t in inputs])
    for got, want in zip(*found, strict=True):
        assert torch.allclose(got, want, atol=1e-9)


def in_tree(**options):
    """A small Mamba-2 of transformers whose parts all matter."""
    options = {"num_heads": 8, "head_dim": 8, "hidden_size": 32, "state_size": 16, "n_groups": 2} | options
    torch.manual_seed(0)
    config = Mamba2Config(num_hidden_layers=3, vocab_size=61, chunk_size=16, initializer_range=0.3, **options)
    model = Mamba2ForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "dt_bias" in name or "conv1d.bias" in name or name.endswith(".D"):
                parameter.normal_()
            if "A_log" in name:
                parameter.normal_(mean=-1)
            if "norm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(
    "options", [{}, {"n_groups": 1}, {"use_conv_bias": False}, {"tie_word_embeddings": True}], ids=str
)
@torch.no_grad()
def test_equals_transformers_with_the_same_weights(options):
    reference = in_tree(**options)
    model = from_mamba2(reference)
    ids = make_ids(2, 150)
    want = reference(ids).logits
    assert (model(ids).logits - want).abs().max() <= 1e-4 * want.abs().max()
    cache, parts = DynamicCache(config=model.config), []
    for piece in ids.split([100, 1, 40, 1, 8], 1):
        parts.append(model(piece, past_key_values=cache).logits)
    assert (torch.cat(parts, 1) - want).abs().max() <= 1e-4 * want.abs().max()
    mask = torch.ones_like(ids)
    mask[1, :23] = 0
    padded = reference(ids, attention_mask=mask).logits[mask.bool()]
    assert (model(ids, attention_mask=mask).logits[mask.bool()] - padded).abs().max() <= 1e-4 * want.abs().max()
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(model.generate(ids[:, :20], **options), reference.generate(ids[:, :20], **options))


def test_gradients_equal_transformers():
    reference = in_tree()
    model, ids = from_mamba2(reference), make_ids(2, 40)
    reference.train()(ids, labels=ids).loss.backward()
    model.train()(ids, labels=ids).loss.backward()
    want = reference.backbone.layers[1].mixer
    got = model.model.layers[1].mixer
    pairs = [(got.in_proj.weight, want.in_proj.weight), (got.cell.A_log, want.A_log), (got.cell.dt_bias, want.dt_bias)]
    pairs += [(got.cell.D, want.D), (got.norm.weight, want.norm.weight)]
    for mine, theirs in pairs:
        assert (mine.grad - theirs.grad).abs().max() <= 1e-4 * theirs.grad.abs().max()
    conv = want.conv1d.weight.grad.squeeze(1)
    assert (got.conv.weight.grad - conv).abs().max() <= 1e-4 * conv.abs().max()


def test_a_saved_checkpoint_is_converted(tmp_path):
    reference = in_tree(tie_word_embeddings=True)
    reference.save_pretrained(tmp_path / "theirs")
    model = from_mamba2(tmp_path / "theirs")
    assert model.config.pattern == "mamba2*3"
    assert model.config.tie_word_embeddings
    ids = make_ids(1, 20)
    with torch.no_grad():
        want = reference(ids).logits
        assert (model(ids).logits - want).abs().max() <= 1e-4 * want.abs().max()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"use_bias": True}, "use_bias=True"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"time_step_limit": (0.1, 1.0)}, "time_step_limit"),
    ],
)
def test_what_cannot_be_converted_is_named(options, named):
    with pytest.raises(UserError, match=named):
        from_mamba2(in_tree(**options))


def change_weights(folder, changes):
    """Weights of a saved checkpoint by their names; None takes one out."""
    weights = load_file(folder / "model.safetensors") | changes
    save_file({name: tensor for name, tensor in weights.items() if tensor is not None}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lm_head.weight": None}, r"weights are missing \(lm_head.weight\)"),
        ({"backbone.layers.1.mixer.D": None}, r"weights are missing \(backbone.layers.1.mixer.D\)"),
        ({"backbone.norm_f.bias": torch.ones(3)}, r"would lack \(backbone.norm_f.bias\)"),
    ],
)
def test_weights_are_neither_made_up_nor_dropped(tmp_path, changes, says):
    in_tree().save_pretrained(tmp_path)
    change_weights(tmp_path, changes)
    with pytest.raises(UserError, match=says):
        from_mamba2(tmp_path)


def test_a_stack_without_a_head_is_a_language_model_only_where_the_embedding_is_its_head(tmp_path):
    for tied in (False, True):
        reference = in_tree(tie_word_embeddings=tied)
        reference.backbone.save_pretrained(tmp_path / str(tied))
    with pytest.raises(UserError, match=r"missing \(lm_head.weight\). Give one of a whole Mamba2ForCausalLM"):
        from_mamba2(tmp_path / "False")
    ids = make_ids(1, 20)
    with torch.no_grad():
        want = reference(ids).logits
        assert (from_mamba2(tmp_path / "True")(ids).logits - want).abs().max() <= 1e-4 * want.abs().max()


def test_a_head_of_its_own_is_kept_whatever_the_configuration_says(tmp_path):
    in_tree(tie_word_embeddings=True).save_pretrained(tmp_path)
    change_weights(tmp_path, {"lm_head.weight": torch.randn(61, 32, generator=torch.Generator().manual_seed(1))})
    reference, model = Mamba2ForCausalLM.from_pretrained(tmp_path).eval(), from_mamba2(tmp_path)
    assert not model.config.tie_word_embeddings
    ids = make_ids(1, 20)
    with torch.no_grad():
        want = reference(ids).logits
        assert (model(ids).logits - want).abs().max() <= 1e-4 * want.abs().max()


def test_conversion_of_something_else(tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        from_mamba2(tmp_path / "nothing")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match="'gpt2'"):
        from_mamba2(tmp_path)


@torch.no_grad()
def test_the_gated_norm_rounds_once_in_bfloat16():
    """fp32 inside: what it gives is the nearest bf16 of what exact arithmetic gives on the same inputs."""
    norm = make_model("mamba2").model.layers[0].mixer.norm
    norm.weight.fill_(1.0)
    y, z = (3 * torch.randn(4, 9, norm.weight.shape[0]).bfloat16() for _ in range(2))
    gated = (y.double() * torch.nn.functional.silu(z.double())).unflatten(-1, (norm.groups, -1))
    want = (gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + norm.eps)).flatten(-2)
    got = norm.bfloat16()(y, z)
    assert got.dtype == torch.bfloat16
    assert ((got.double() - want).abs() <= 1.01 * 2**-8 * want.abs()).all()
