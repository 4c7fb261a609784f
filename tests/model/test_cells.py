"""Each cell: where it starts, what it computes, and what it may not depend on."""

import math

import pytest
import torch
from models import PATTERNS, make_ids, make_model

from hybridlm import HybridLMConfig, HybridLMForCausalLM
from hybridlm.model.mixers_hybridlm import CELLS
from hybridlm.model.surrogate_hybridlm import sign

WIDTH = 256


def make_cell(name, **options):
    config = HybridLMConfig(pattern=name, hidden_size=WIDTH, num_attention_heads=4, vocab_size=8, **options)
    return HybridLMForCausalLM(config).model.layers[0].mixer.cells[0]


def test_lru_starts_inside_its_ring():
    cell = make_cell("lru", decay_min=0.5, decay_max=0.9, phase_max=1.0)
    re, im = cell.decay()
    modulus, phase = torch.hypot(re, im), torch.atan2(im, re)
    assert 0.5 <= modulus.min() < 0.55
    assert 0.85 < modulus.max() <= 0.9
    assert phase.min() >= 0
    assert phase.max() <= 1.0
    assert torch.allclose(torch.exp(cell.gamma_log), torch.sqrt(1 - modulus**2), atol=1e-5)
    assert not any(p.is_complex() for p in cell.parameters())


def test_rglru_starts_inside_its_range_and_keeps_its_gradient_finite():
    cell = make_cell("rglru", decay_min=0.9, decay_max=0.999)
    start = torch.exp(-torch.nn.functional.softplus(cell.p))
    assert start.min() >= 0.9
    assert start.max() <= 0.999
    x = torch.zeros(1, 3, WIDTH, requires_grad=True)
    with torch.no_grad():
        cell.p.fill_(-60.0)  # a = 1: the slope of sqrt(1 - a^2) is infinite
    h, _ = cell(x, cell.initial_state(1, x.device), None, None)
    h.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in cell.parameters() if p.grad is not None)


def test_rglru_equals_its_equations():
    cell, x = make_cell("rglru").double(), torch.randn(2, 9, WIDTH).double()
    weight, bias, block = cell.gate_weight, cell.gate_bias, WIDTH // 4
    r, i = torch.empty_like(x), torch.empty_like(x)
    for head in range(4):
        part = slice(head * block, (head + 1) * block)
        both = torch.sigmoid(x[..., part] @ weight[head] + bias[head])
        r[..., part], i[..., part] = both[..., :block], both[..., block:]
    h, _ = cell(x, cell.initial_state(2, x.device), None, None)
    a, s = torch.exp(-8 * r * torch.log1p(torch.exp(cell.p))), torch.zeros(2, WIDTH).double()
    for t in range(9):
        s = a[:, t] * s + torch.sqrt(1 - a[:, t] ** 2) * i[:, t] * x[:, t]
        assert torch.allclose(h[:, t], s, atol=1e-12)


def test_mingru_equals_its_equations():
    cell, x = make_cell("mingru").double(), torch.randn(2, 9, WIDTH).double()
    h, _ = cell(x, cell.initial_state(2, x.device), None, None)
    z, candidate, s = torch.sigmoid(cell.gate(x)), cell.candidate(x), torch.zeros(2, WIDTH).double()
    for t in range(9):
        s = (1 - z[:, t]) * s + z[:, t] * candidate[:, t]
        assert torch.allclose(h[:, t], s, atol=1e-12)


def test_lru_equals_its_equations():
    cell, x = make_cell("lru").double(), torch.randn(2, 9, WIDTH).double()
    h, _ = cell(x, cell.initial_state(2, x.device), None, None)
    lam = torch.exp(-torch.exp(cell.nu_log) + 1j * torch.exp(cell.theta_log))
    B, C = torch.complex(*cell.B.weight.chunk(2)), torch.complex(cell.C.weight[:, :WIDTH], -cell.C.weight[:, WIDTH:])
    s = torch.zeros(2, WIDTH, dtype=torch.complex128)
    for t in range(9):
        s = lam * s + torch.exp(cell.gamma_log) * (x[:, t].to(s.dtype) @ B.T)
        assert torch.allclose(h[:, t], (s @ C.T).real + cell.d * x[:, t], atol=1e-12)


@pytest.mark.parametrize(("name", "epsilon"), [("bmru", 0.0), ("bmru", 0.4), ("bmru", 1.0), ("cmru", 1.0)])
def test_memory_units_equal_their_equations(name, epsilon):
    cell, x = make_cell(name).double(), torch.randn(2, 40, WIDTH).double()
    if name == "bmru":
        cell.epsilon = epsilon
    start = cell.initial_state(2, x.device)
    h, _ = cell(x, start, None, None)
    c, beta, s = cell.candidate(x), cell.threshold(x).abs(), start["s"]
    for t in range(40):
        z = (c[:, t].abs() >= beta[:, t]).double()
        s = z * (sign(c[:, t]) + epsilon * s) + (1 - z) * s
        assert torch.allclose(h[:, t], cell.alpha * s, atol=1e-12)


def test_acmru_equals_its_equations():
    cell, x = make_cell("acmru").double(), torch.randn(2, 9, WIDTH).double()
    h, _ = cell(x, cell.initial_state(2, x.device), None, None)
    c, beta = cell.candidate(x), cell.threshold(x).abs()
    want = ((c.abs() >= beta) * cell.amplitude(x) * sign(c)).cumsum(1)
    assert torch.allclose(h, want, atol=1e-12)


def test_fqbmru_equals_its_equations():
    cell, x = make_cell("fqbmru").double(), torch.randn(2, 40, WIDTH).double()
    h, _ = cell(x, cell.initial_state(2, x.device), None, None)
    u, s = torch.relu(cell.drive(x)), torch.zeros(2, WIDTH).double()
    for t in range(40):
        s = torch.where(u[:, t] > 1.5, 1.0, torch.where(u[:, t] < 0.5, 0.0, s)).double()
        assert torch.equal(h[:, t], cell.alpha * s)
    assert 0.2 < s.mean() < 0.8


def test_fqbmru_draws_a_rectangular_loop_and_passes_gradients_through_its_jumps():
    cell = make_cell("fqbmru", threshold_low=0.25, threshold_high=0.75).double()
    with torch.no_grad():
        cell.drive.weight.copy_(torch.eye(WIDTH))
        cell.drive.bias.zero_()
    sweep = torch.tensor([-1, 0.2, 0.25, 0.5, 0.75, 0.76, 0.5, 0.25, 0.24, 0.5]).double()
    x = sweep[None, :, None].expand(1, -1, WIDTH).clone().requires_grad_()
    h, _ = cell(x, cell.initial_state(1, x.device), None, None)
    assert h[0, :, 0].tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 0, 0]
    h.sum().backward()
    assert x.grad[0, 1:, 0].abs().min() > 0
    assert x.grad[0, 0, 0] == 0  # below 0 the drive does not move
    cell.record_writes = True
    cell(x, cell.initial_state(1, x.device), None, None)
    assert cell.write_share.item() == pytest.approx(0.4)  # 3 resets and 1 set in 10 steps


def test_a_nan_in_the_drive_of_fqbmru_stays_a_nan():
    cell, x = make_cell("fqbmru"), torch.zeros(1, 4, WIDTH)
    x[0, 1] = float("nan")
    h, _ = cell(x, cell.initial_state(1, x.device), None, None)
    assert torch.isfinite(h[0, 0]).all()
    assert h[0, 1:].isnan().all()


@pytest.mark.parametrize(("name", "kind"), [("gru", torch.nn.GRU), ("lstm", torch.nn.LSTM)])
def test_torch_cells_equal_torch(name, kind):
    cell, x = make_cell(name).double(), torch.randn(3, 9, WIDTH).double()
    module = kind(WIDTH, WIDTH, batch_first=True).double()
    module.load_state_dict({f"{key}_l0": value for key, value in cell.state_dict().items()})
    start = {key: torch.randn(3, WIDTH).double() for key in cell.state_names}
    begin = tuple(state[None] for state in start.values())
    want, last = module(x, begin if name == "lstm" else begin[0])
    for mask in (None, torch.ones(3, 9, dtype=torch.bool)):  # the fused loop, and step by step
        h, states = cell(x, start, mask, None)
        assert torch.allclose(h, want, atol=1e-12)
        for state, final in zip(states.values(), last if name == "lstm" else [last], strict=True):
            assert torch.allclose(state[:, -1], final[0], atol=1e-12)


def test_memory_units_start_as_published():
    cell, x = make_cell("bmru"), torch.randn(4, 200, WIDTH)
    assert set(cell.start().tolist()) == {-1.0, 1.0}
    assert bool((cell.alpha == 1).all() and (cell.threshold.bias == 1).all() and (cell.candidate.bias == 0).all())
    amplitude = make_cell("acmru", threshold_init=0.25, amplitude_init=0.5)
    assert bool((amplitude.threshold.bias == 0.25).all() and (amplitude.amplitude.bias == 0.5).all())
    assert cell.candidate.weight.std().item() == pytest.approx(1 / math.sqrt(WIDTH), rel=0.05)
    cell.record_writes = True
    cell(x, cell.initial_state(4, x.device), None, None)
    # With b_beta = 1 about a third of the units write at a step: P(|c| > |1 + n|) for c, n standard normal is 0.37.
    assert 0.3 < cell.write_share.mean().item() < 0.42


def test_a_learned_initial_state_is_legal_and_learns():
    cell = make_cell("bmru", learn_initial_state=True)
    x = torch.randn(1, 5, WIDTH)
    h, _ = cell(x, cell.initial_state(1, x.device), None, torch.tensor([[False, False, True, False, False]]))
    h.square().sum().backward()
    assert set(cell.start().tolist()) == {-1.0, 1.0}
    assert cell.s0.grad.abs().sum() > 0


@pytest.mark.parametrize("name", [name for name in CELLS if name != "nfsm"])  # whose states are integers
def test_the_recurrence_runs_in_float32(name):
    cell = make_cell(name).bfloat16()
    x = torch.randn(2, 6, WIDTH).bfloat16()
    h, states = cell(x, cell.initial_state(2, x.device), None, None)
    assert h.dtype == torch.bfloat16
    assert set(states) == set(cell.state_names)
    steps = 1 if name == "lstm" else 6  # torch's loop tells c after the last token alone
    assert all(s.dtype == torch.float32 and s.shape == (2, steps, WIDTH) for s in states.values())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_token_sees_the_future(pattern):
    model, ids = make_model(pattern), make_ids(1, 20)
    changed = ids.clone()
    changed[0, 12] = (ids[0, 12] + 1) % 60
    with torch.no_grad():
        before, after = model(ids).logits, model(changed).logits
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.equal(before[:, 12:], after[:, 12:])


def test_every_parameter_gets_a_gradient():
    for pattern in PATTERNS:
        model = make_model(pattern, tie_word_embeddings=False).train()
        model(make_ids(2, 30), labels=make_ids(2, 30)).loss.backward()
        missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert not missing, (pattern, missing)


def test_epsilon_is_training_state(tmp_path):
    model = make_model("bmru cmru")
    assert model.epsilon == 0.0
    assert make_model("cmru lru").epsilon is None
    model.set_epsilon(0.7)
    assert model.epsilon == model.model.epsilon == 0.7
    assert model.model.layers[1].mixer.cells[0].epsilon == 1.0  # cmru is not annealed
    model.save_pretrained(tmp_path)
    assert HybridLMForCausalLM.from_pretrained(tmp_path).epsilon == 0.0
    with pytest.raises(ValueError, match=r"epsilon=1\.5"):
        model.set_epsilon(1.5)


def test_epsilon_changes_what_a_bmru_computes():
    model, ids = make_model("bmru"), make_ids(1, 30)
    with torch.no_grad():
        bistable = model(ids).logits
        model.set_epsilon(1.0)
        assert not torch.allclose(model(ids).logits, bistable)


def test_write_penalty():
    model = make_model("bmru cmru").train()
    assert model.write_penalty() is None
    model.record_writes(True)
    model(make_ids(2, 20))
    cells = [layer.mixer.cells[0] for layer in model.model.layers]
    assert all(cell.write_share.shape == (2,) for cell in cells)
    want = sum(cell.write_share.square().mean().item() for cell in cells) / 2
    penalty = model.write_penalty()
    assert penalty.item() == pytest.approx(want)
    penalty.backward()
    assert all(cell.threshold.weight.grad.abs().sum() > 0 for cell in cells)
    model.record_writes(False)
    assert model.write_penalty() is None


def test_the_start_of_the_weights():
    torch.manual_seed(0)
    model = HybridLMForCausalLM(
        HybridLMConfig(pattern="(rglru attention)*2", hidden_size=256, vocab_size=500, tie_word_embeddings=False)
    )
    layer, attention = model.model.layers[0], model.model.layers[1].mixer

    def std(linear):
        return linear.weight.std().item()

    residual = 1 / math.sqrt(2 * 4)
    assert std(layer.mixer.in_proj) == pytest.approx(1 / 16, rel=0.03)
    assert std(layer.mixer.out_proj) == pytest.approx(residual / 16, rel=0.03)
    assert std(layer.mlp.down_proj) == pytest.approx(residual / math.sqrt(704), rel=0.03)
    assert std(attention.o_proj) == pytest.approx(residual / 16, rel=0.03)
    assert std(attention.q_proj) == pytest.approx(1 / 16, rel=0.03)
    assert std(model.model.embed_tokens) == pytest.approx(0.02, rel=0.03)
    lru = make_cell("lru")
    assert std(lru.B) == pytest.approx(1 / math.sqrt(2 * WIDTH), rel=0.03)
    assert std(lru.C) == pytest.approx(1 / math.sqrt(WIDTH), rel=0.03)
    assert std(model.lm_head) == pytest.approx(0.02, rel=0.03)
