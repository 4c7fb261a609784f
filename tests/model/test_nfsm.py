"""Finite-state heads: integers exact in every order, the surrogate gradient by its formula, and what they learn."""

import math

import pytest
import torch
from index_scans import by_hand, dense_gradient, identity, random_scan
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache

from hybridlm import HybridLMConfig, HybridLMForCausalLM, HybridLMModel
from hybridlm.model.indexscan_hybridlm import index_scan

LENGTHS = [1, 2, 3, 31, 33, 64, 65, 101, 257]
WIDTH = 24


@pytest.mark.parametrize("flags", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_states_are_those_of_a_loop(length, flags):
    drive, start, reset, mask = random_scan(length, flags=flags)
    one_hot, states = index_scan(drive, identity(drive), start, reset=reset, mask=mask)
    want = by_hand(drive, start, reset, mask)
    assert states.dtype == torch.uint8
    assert torch.equal(states.long(), want)
    assert torch.equal(one_hot, F.one_hot(want, drive.shape[-1]).double())


def test_any_chunks_and_single_steps_give_the_same_states():
    drive, start, reset, mask = random_scan(200)
    values = identity(drive)
    _, want = index_scan(drive, values, start, reset=reset, mask=mask)
    for size in (1, 7, 64, 199):
        state, found = start, []
        for first in range(0, 200, size):
            part = slice(first, first + size)
            _, states = index_scan(drive[:, part], values, state, reset=reset[:, part], mask=mask[:, part])
            state = states[:, -1]
            found.append(states)
        assert torch.equal(torch.cat(found, 1), want)


@pytest.mark.parametrize("flags", [False, True])
@pytest.mark.parametrize("length", [1, 2, 33, 65])
def test_the_gradient_is_the_formula(length, flags):
    drive, start, reset, mask = random_scan(length, flags=flags)
    grad = torch.randn(*drive.shape[:-1], dtype=torch.float64)
    want = dense_gradient(drive, start, grad, reset, mask)
    drive.requires_grad_()
    one_hot, _ = index_scan(drive, identity(drive), start, reset=reset, mask=mask)
    one_hot.backward(grad)
    assert torch.allclose(drive.grad, want, atol=1e-12)


def test_one_step_is_the_gradient_of_a_soft_choice():
    """Where nothing comes later, the surrogate is the derivative of the expected value under p."""
    drive, start, _, _ = random_scan(1, flags=False)
    grad = torch.randn(*drive.shape[:-1], dtype=torch.float64)
    soft = drive.clone().requires_grad_()
    visited = soft.softmax(-1).gather(-2, start.long()[:, None, :, None, None].expand(-1, 1, -1, 1, 5)).squeeze(-2)
    visited.backward(grad)
    drive.requires_grad_()
    index_scan(drive, identity(drive), start)[0].backward(grad)
    assert torch.allclose(drive.grad, soft.grad, atol=1e-14)


def test_a_long_scan_is_exact():
    """Rotations by 0 or 1 of seven states: the state is the count modulo seven."""
    length, n = 100_003, 7
    turn = torch.randint(0, 2, (1, length), generator=torch.Generator().manual_seed(0))
    goes = (torch.arange(n) + turn[..., None]) % n
    drive = F.one_hot(goes, n).float().unsqueeze(2)
    _, states = index_scan(drive, identity(drive), torch.zeros(1, 1, dtype=torch.uint8))
    assert torch.equal(states[..., 0].long(), turn.cumsum(1) % n)


def test_a_nan_is_seen_where_it_was_read_and_nowhere_else():
    drive, start, _, _ = random_scan(9, flags=False)
    values = identity(drive)
    _, states = index_scan(drive, values, start)
    read, other = int(states[0, 3, 1]), (int(states[0, 3, 1]) + 1) % 5
    drive[0, 4, 1, other, 2] = math.nan
    assert not index_scan(drive, values, start)[0].isnan().any()
    drive[0, 4, 1, read, 2] = math.nan
    for grad in (False, True):
        found = index_scan(drive.requires_grad_(grad), values, start)[0].isnan()
        assert found[0, 4, 1].all()
        assert found.sum() == 5
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[0, 4] = False
    assert not index_scan(drive, values, start, mask=mask)[0].isnan().any()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"theta": torch.zeros(2, 4, 3, 5, 4)}, "theta has shape"),
        ({"theta": torch.zeros(2, 0, 3, 5, 5)}, "T >= 1"),
        ({"initial_state": torch.zeros(2, 3)}, "initial_state is torch.float32"),
        ({"initial_state": torch.zeros(2, 4, dtype=torch.uint8)}, r"must be uint8 of shape \(2, 3\)"),
        ({"values": torch.zeros(3, 4, 2)}, r"values has shape \(3, 4, 2\); it must be \(K, n, d\) = \(3, 5, d\)"),
        ({"bias": torch.zeros(5, 5)}, r"bias has shape \(5, 5\); it must be \(3, 5, 5\)"),
        ({"noise": torch.zeros(3, 5, 5)}, r"noise has shape \(3, 5, 5\); it must be \(2, 4, 3, 5, 5\)"),
        ({"path": "fast"}, "there is no such path"),
    ],
)
def test_wrong_inputs_are_refused(given, message):
    right = {"theta": torch.zeros(2, 4, 3, 5, 5), "values": torch.zeros(3, 5, 2)}
    right["initial_state"] = torch.zeros(2, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match=message):
        index_scan(**{**right, **given})


def make_cell(**options):
    torch.manual_seed(0)
    config = HybridLMConfig(pattern="nfsm", hidden_size=WIDTH, vocab_size=8, **{"nfsm_heads": 4, **options})
    return HybridLMForCausalLM(config).model.layers[0].mixer.cells[0]


def test_the_cell_equals_its_equations():
    cell, x = make_cell(nfsm_states=5).double(), torch.randn(2, 40, WIDTH, dtype=torch.float64)
    h, states = cell(x, cell.initial_state(2, x.device), None, None)
    theta = (x @ cell.transition.weight.T).view(2, 40, 4, 5, 5) + cell.transition_bias
    for row in range(2):
        for head in range(4):
            s = 0
            for t in range(40):
                s = int(theta[row, t, head, s].argmax())
                assert int(states["s"][row, t, head]) == s
                part = slice(6 * head, 6 * head + 6)
                assert torch.equal(h[row, t, part], cell.values[head, s])


def test_gradients_of_the_cell_are_the_design_texts():
    """dL/dTheta[:, j] = p (lambda - <p, lambda>) / nu, with the noise in p, and values' gradients."""
    cell, x = make_cell(nfsm_states=3, nfsm_temperature=0.7).double(), torch.randn(2, 33, WIDTH, dtype=torch.float64)
    cell.exploration = 1.0
    g = torch.randn(2, 33, WIDTH, dtype=torch.float64)
    seen = []
    cell.transition.register_forward_hook(lambda module, inputs, output: seen.append(output) or output.retain_grad())
    torch.manual_seed(3)
    h, states = cell(x, cell.initial_state(2, x.device), None, None)
    h.backward(g)
    torch.manual_seed(3)
    noise = -torch.log(-torch.log(torch.rand(2, 33, 4, 3, 3, dtype=torch.float64)))
    drive = (seen[0].detach().view(2, 33, 4, 3, 3) + cell.transition_bias.detach()) / 0.7 + noise
    per_head = g.view(2, 33, 4, 6)
    q = torch.einsum("btkd,knd->btkn", per_head, cell.values.detach())
    want = dense_gradient(drive, torch.zeros(2, 4, dtype=torch.uint8), q, None, None) / 0.7
    assert torch.allclose(seen[0].grad.view_as(want), want, atol=1e-12)
    assert torch.allclose(cell.transition_bias.grad, want.sum((0, 1)), atol=1e-12)
    by_state = torch.einsum("btkn,btkd->knd", F.one_hot(states["s"].long(), 3).double(), per_head)
    assert torch.allclose(cell.values.grad, by_state, atol=1e-12)


def test_hand_set_weights_make_a_flip_flop():
    """Channel 0 sets, channel 1 resets, neither holds: bmru's memory with n = 2."""
    cell = make_cell(nfsm_states=2, nfsm_heads=1)
    with torch.no_grad():
        cell.transition.weight.zero_()
        cell.transition_bias.copy_(torch.eye(2))
        weight = cell.transition.weight.view(2, 2, WIDTH)
        weight[:, 1, 0] = 2.0  # to state 1, from either
        weight[:, 0, 1] = 2.0
        cell.values.copy_(torch.tensor([-1.0, 1.0])[:, None].expand(1, 2, WIDTH))
    letters = torch.randint(0, 3, (4, 5000), generator=torch.Generator().manual_seed(0))
    x = torch.zeros(4, 5000, WIDTH)
    x[..., 0], x[..., 1] = letters == 1, letters == 2
    h, _ = cell(x, cell.initial_state(4, x.device), None, None)
    for row in range(4):
        s, want = -1.0, []
        for letter in letters[row].tolist():
            s = {0: s, 1: 1.0, 2: -1.0}[letter]
            want.append(s)
        assert h[row, :, 0].tolist() == want


def test_exploration_is_training_state(tmp_path):
    torch.manual_seed(0)
    model = HybridLMForCausalLM(HybridLMConfig(pattern="nfsm bmru", hidden_size=WIDTH, vocab_size=8))
    ids = torch.randint(0, 8, (2, 30))
    assert model.exploration == 0.0
    calm = model(ids).logits
    assert torch.equal(calm, model(ids).logits)
    model.set_exploration(1.0)
    assert model.exploration == model.model.exploration == 1.0
    torch.manual_seed(5)
    noisy = model(ids).logits
    assert not torch.allclose(noisy, calm)
    assert not torch.allclose(noisy, model(ids).logits)
    torch.manual_seed(5)
    assert torch.equal(noisy, model(ids).logits)
    model.save_pretrained(tmp_path)
    assert HybridLMForCausalLM.from_pretrained(tmp_path).exploration == 0.0
    for value in (-0.5, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"exploration={value}"):
            model.set_exploration(value)
    other = HybridLMModel(HybridLMConfig(pattern="bmru", hidden_size=WIDTH, vocab_size=8))
    other.set_exploration(1.0)
    assert other.exploration is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"nfsm_heads": 0}, "nfsm_heads=0: must be at least 1"),
        ({"nfsm_states": 1}, "nfsm_states=1: must be from 2 to 256"),
        ({"nfsm_states": 257}, "nfsm_states=257: must be from 2 to 256"),
        ({"nfsm_temperature": 0}, "nfsm_temperature=0: must be above 0"),
        ({"nfsm_heads": 7}, "hidden_size=24: must be a multiple of nfsm_heads=7, for the values of nfsm"),
        ({"nfsm_heads": 7, "state_size": 30}, "state_size=30: must be a multiple of nfsm_heads=7"),
    ],
)
def test_wrong_sizes_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        HybridLMConfig(**{"pattern": "nfsm", "hidden_size": WIDTH, "vocab_size": 8, **fields})


def test_a_state_is_a_byte_a_head():
    cell = make_cell(nfsm_heads=12)
    (state,) = cell.initial_state(3, torch.device("cpu")).values()
    assert (state.dtype, tuple(state.shape)) == (torch.uint8, (3, 12))


@torch.no_grad()
def test_beside_other_cells_a_cache_carries_both_kinds_of_state():
    torch.manual_seed(0)
    model = HybridLMForCausalLM(HybridLMConfig(pattern="bmru+nfsm rglru", hidden_size=WIDTH, vocab_size=8)).eval()
    ids, cache = torch.randint(0, 8, (2, 40)), DynamicCache(config=model.config)
    parts = [model(part, past_key_values=cache).logits for part in ids.split([20] + [1] * 20, 1)]
    assert {name: s.dtype for name, s in cache.layers[0].states.items()} == {"0.s": torch.float32, "1.s": torch.uint8}
    assert torch.allclose(torch.cat(parts, 1), model(ids, use_cache=False).logits, atol=1e-5)
    several = DynamicCache(config=model.config)
    model(ids, past_key_values=several)
    assert torch.equal(several.layers[0].states["1.s"], cache.layers[0].states["1.s"])


class Tracker(nn.Module):
    """The letters of Z2, one layer, the parity so far."""

    def __init__(self):
        super().__init__()
        options = {"hidden_size": 16, "nfsm_heads": 4, "nfsm_states": 2, "conv_kernel": 0, "intermediate_size": 0}
        self.stack = HybridLMModel(HybridLMConfig(pattern="nfsm", vocab_size=2, initializer_range=1.0, **options))
        self.head = nn.Linear(16, 2)

    def forward(self, letters):
        return self.head(self.stack(letters, use_cache=False).last_hidden_state)


def test_parity_is_learned_at_16_and_right_at_4096():
    torch.manual_seed(0)
    tracker, steps = Tracker(), 150
    optimizer = torch.optim.Adam(tracker.parameters(), lr=2e-2)
    for step in range(steps):
        tracker.stack.set_exploration(float(step < steps // 2))
        letters = torch.randint(0, 2, (32, 16))
        F.cross_entropy(tracker(letters).flatten(0, 1), (letters.cumsum(1) % 2).flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    letters = torch.randint(0, 2, (32, 4096))
    with torch.no_grad():
        assert torch.equal(tracker(letters).argmax(-1), letters.cumsum(1) % 2)
