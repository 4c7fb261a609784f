"""The proof head by head: on a model whose weights are set by hand, and against all that heads can do together."""

import json
from itertools import product

import numpy as np
import pytest
import torch

from hybridlm import HybridLMConfig, HybridLMForTokenClassification
from hybridlm.cli import main
from hybridlm.evaluation.certificate import heads as proofs
from hybridlm.evaluation.certificate.certify import certify_checkpoint
from hybridlm.evaluation.certificate.heads import is_sum_of, prove, take_apart
from hybridlm.evaluation.memory.registry import TASKS


def model_of(task, **changed):
    torch.manual_seed(3)
    made = TASKS[task](True)
    fields = {
        "pattern": "nfsm", "vocab_size": made.inputs, "num_labels": made.outputs, "hidden_size": 12,
        "num_attention_heads": 1, "nfsm_heads": 3, "nfsm_states": 3, "conv_kernel": 0, "intermediate_size": 0,
        "output_gate": False, "initializer_range": 1.0,
    }  # fmt: skip
    model = HybridLMForTokenClassification(HybridLMConfig(**{**fields, **changed})).double().eval()
    with torch.no_grad():
        model.score.bias.normal_()
        model.model.norm.weight.normal_()
        model.model.layers[0].mixer.cells[0].transition_bias.normal_(std=0.1)
    return model, made


@pytest.fixture
def parity():
    """Z2 followed by the first of three heads: letter 1 swaps its states 0 and 1, letter 0 keeps them. The others move
    at random, and add up to `noise` each to the answers, which the first moves by 1 either way."""

    def make(noise):
        model, _ = model_of("z2")
        cell, mixer = model.model.layers[0].mixer.cells[0], model.model.layers[0].mixer
        with torch.no_grad():
            model.model.embed_tokens.weight.zero_()[0, 0] = 1
            model.model.embed_tokens.weight[1, 1] = 1
            model.model.norm.weight.fill_(1)
            mixer.in_proj.weight.copy_(torch.eye(12))
            theta = cell.transition.weight.unflatten(0, (3, 3, 3))
            theta[0] = 0
            cell.transition_bias[0] = 0
            for source in range(2):
                theta[0, source, source, 0] = theta[0, source, 1 - source, 1] = 1
            cell.values.zero_()
            cell.values[0, :2, 0] = torch.tensor([-1.0, 1])
            cell.values[1:, :, 0] = torch.tensor([-noise, 0.0, noise])
            mixer.out_proj.weight.zero_()[2, [0, 4, 8]] = 1  # all heads into one number of the stream
            model.score.weight.zero_()[:, 2] = torch.tensor([-1.0, 1])
            model.score.bias.zero_()
        return model

    return make


@pytest.mark.parametrize("gate", [False, True])
def test_a_model_is_the_sum_of_its_parts(gate):
    model, _ = model_of("s3", output_gate=gate)
    heads = take_apart(model)
    assert is_sum_of(model, heads)
    with torch.no_grad():
        model.model.layers[0].mixer.out_proj.weight[0, 0] += 1
    assert not is_sum_of(model, heads)


@pytest.mark.parametrize(
    "change", [{"conv_kernel": 2}, {"intermediate_size": 8}, {"pattern": "nfsm*2"}, {"input_skip": True}]
)
def test_other_stacks_are_not_taken_apart(change):
    model, _ = model_of("s3", **change)
    assert take_apart(model) is None


def test_maps_that_give_more_than_their_weights_say(parity):
    """As those of an adapter do, whose sizes the bounds would not know."""

    class Adapted(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1e6 * x - 1e6 * x

    model = parity(0.0)
    model.model.layers[0].mixer.in_proj.__class__ = Adapted
    assert take_apart(model) is None


@pytest.mark.parametrize("task", ["z2", "s3", "dyck1_depth"])
@pytest.mark.parametrize("gate", [False, True])
def test_bound_holds_for_all_that_heads_can_be_in_together(task, gate, monkeypatch):
    """Every letter in every state of the task, with all combinations of states that single heads can be in there; heads
    are followed over all words up to a length, by the sets of what they reach."""
    model, made = model_of(task, output_gate=gate)
    heads = take_apart(model)
    bounds = answers_of(heads, made, monkeypatch)
    moves = heads.theta.argmax(-1)
    following, labels, choices = made.transitions.tolist(), made.labels.tolist(), made.choices.tolist()
    behind = {}  # letter, state of the task behind it -> for each head its states there
    for k in range(heads.count):
        seen = {(0, 0)}
        for _ in range(len(following) * 3):
            seen |= {(following[q][a], int(moves[a, k, s])) for q, s in seen for a in choices[q]}
        for q, s in seen:
            for letter in choices[q]:
                states = behind.setdefault((letter, following[q][letter]), [set() for _ in range(heads.count)])
                states[k].add(int(moves[letter, k, s]))
    assert {letter for letter, _ in behind} == set(bounds)
    for letter, bound in bounds.items():
        least = np.inf
        for q in (q for a, q in behind if a == letter):
            for states in product(*behind[letter, q]):
                z = heads.letter[letter] + heads.emitted[letter, range(heads.count), states].sum(0)
                logits = heads.weight @ z / heads.rms(z) + heads.bias
                least = min(least, logits[labels[q]] - np.delete(logits, labels[q]).max())
        assert bound <= least + 1e-12


def answers_of(heads, task, monkeypatch):
    """The bounds of all letters, also where they show nothing."""
    found, least_leads = {}, proofs._least_leads

    def noting(heads, letter, *rest):
        least, off = least_leads(heads, letter, *rest)
        found[letter] = least.min()
        return np.ones_like(least), np.zeros_like(off)

    monkeypatch.setattr(proofs, "_least_leads", noting)
    assert prove(heads, task) is not None
    monkeypatch.undo()
    return found


def test_bound_is_exact_for_one_head(parity):
    """One head whose state is the task's: nothing is left to bound."""
    model = parity(0.0)
    rms = np.sqrt(2 / 12 + model.config.rms_norm_eps)
    assert prove(take_apart(model), TASKS["z2"](True)).answers == pytest.approx(2 / rms, rel=1e-9)


@pytest.mark.parametrize(("noise", "sure"), [(0.3, True), (0.49, True), (0.51, False)])
def test_heads_that_wander(parity, tmp_path, noise, sure):
    """Two heads that may add as much as the first decides: below it the model is certified, whatever the limit."""
    model = parity(noise)
    assert (prove(take_apart(model), TASKS["z2"](True)) is not None) == sure
    model.float().save_pretrained(tmp_path / "model")
    facts = certify_checkpoint(tmp_path / "model", task="z2", limit=1)
    assert facts["verdict"] == ("correct" if sure else "open")
    assert facts["heads"] == (3 if sure else None)
    if sure:
        assert (facts["same_automaton"], facts["states_of_task"]) == (True, 2)
        assert facts["holds_in"] == ["float64", "float32"]


def test_letters_that_come_in_some_states_only(tmp_path):
    """Depth of brackets up to 8, by one head that counts; what it does for letters that never come is of no matter."""
    model, made = model_of("dyck1_depth", hidden_size=12, nfsm_heads=1, nfsm_states=10)
    cell, mixer = model.model.layers[0].mixer.cells[0], model.model.layers[0].mixer
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.layers[0].mixer_norm.weight.fill_(1)
        model.model.norm.weight.fill_(1)
        model.model.embed_tokens.weight.copy_(torch.eye(12)[10:])
        mixer.in_proj.weight.copy_(torch.eye(12))
        theta = cell.transition.weight.unflatten(0, (10, 10))
        theta[:, 9] = 0.01  # where no rule says anything, into a state that says nothing
        for depth in range(9):
            theta[depth, min(depth + 1, 9), 10] = 1
            theta[depth, depth - 1, 11] = 1
        cell.values[0, :10, :10] = torch.eye(10)
        mixer.out_proj.weight.copy_(torch.eye(12))
        model.score.weight[:9, :9] = torch.eye(9)
    model.float().save_pretrained(tmp_path / "model")
    facts = certify_checkpoint(tmp_path / "model", task="dyck1_depth", limit=1)
    assert (facts["verdict"], facts["heads"], made.choices.shape[1]) == ("correct", 1, 2)


def test_what_is_printed(parity, tmp_path, capsys):
    parity(0.3).float().save_pretrained(tmp_path / "model")
    out = tmp_path / "z2.json"
    assert main(["certify", str(tmp_path / "model"), "--task", "z2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("z2, nfsm: correct at every length (in float64 and float32)\n")
    assert "reached     3 heads, each by itself, in " in printed
    assert "steps, in float64; however sums are rounded" in printed
    assert "margins     answers at least " in printed
    assert json.loads(out.read_text())["verdict"] == "correct"


def test_a_narrower_dtype_is_not_claimed(parity, tmp_path, capsys):
    """A lead that bfloat16 cannot hold beside the bias."""
    model = parity(0.0)
    with torch.no_grad():
        model.score.bias.fill_(4096)
    model.bfloat16().save_pretrained(tmp_path / "model")
    assert main(["certify", str(tmp_path / "model"), "--task", "z2", "--out", str(tmp_path / "z2.json")]) == 0
    printed = capsys.readouterr().out
    assert "correct at every length (in float64)\n" in printed
    assert "in bfloat16 some moves or answers are too close to be sure of" in printed


def small_transitions(model):
    """Whose products are below all that float32 has."""
    model.model.layers[0].mixer.in_proj.weight.mul_(1e-25)
    model.model.layers[0].mixer.cells[0].transition.weight.mul_(1e-25)


def large_letters(model):
    """Whose squares fit, and their sum does not."""
    model.model.embed_tokens.weight.mul_(1e19)[:, 4:] = 1e19


def large_on_the_way(model):
    """What the input projection gives, which transitions make small again."""
    model.model.layers[0].mixer.in_proj.weight.mul_(3e38)
    model.model.layers[0].mixer.cells[0].transition.weight.mul_(1e-38)


def small_letters(model):
    """Squares, and an eps, that are 0 in float32."""
    model.model.embed_tokens.weight.mul_(1e-25)
    model.model.layers[0].mixer.out_proj.weight.mul_(1e-25)
    for norm in (model.model.norm, model.model.layers[0].mixer_norm):
        norm.eps = 1e-60
    model.config.rms_norm_eps = 1e-60


@pytest.mark.parametrize("change", [small_transitions, large_letters, large_on_the_way, small_letters])
def test_numbers_that_a_narrower_dtype_does_not_have(parity, tmp_path, change):
    """Right in float64 and wrong in float32, without a sum that is badly rounded."""
    model, letters = parity(0.0), torch.tensor([[1, 1, 0, 1, 0, 0, 1, 1]])
    with torch.no_grad():
        change(model)
        assert torch.equal(model(letters).logits.argmax(-1), letters.cumsum(1) % 2)
        model.float().save_pretrained(tmp_path / "model")
        assert not torch.equal(model(letters).logits.argmax(-1), letters.cumsum(1) % 2)
    facts = certify_checkpoint(tmp_path / "model", task="z2")
    assert (facts["verdict"], facts["holds_in"]) == ("correct", ["float64"])


def test_wrong_model_is_followed(parity, tmp_path):
    """One that always says the opposite is wrong at once, and the word is shown."""
    model = parity(0.0)
    with torch.no_grad():
        model.score.weight.neg_()
    model.float().save_pretrained(tmp_path / "model")
    facts = certify_checkpoint(tmp_path / "model", task="z2")
    assert (facts["verdict"], facts["word"], facts["heads"]) == ("wrong", [0], None)


def test_a_head_that_may_go_either_way(parity):
    """Destinations that are equally good are both taken: that is proved where the head does not matter, and not where
    it decides."""
    for head, proved in ((1, True), (0, False)):
        model = parity(0.3)
        with torch.no_grad():
            model.model.layers[0].mixer.cells[0].transition.weight.unflatten(0, (3, 3, 3))[head] = 0
            model.model.layers[0].mixer.cells[0].transition_bias[head] = 0
        assert (prove(take_apart(model), TASKS["z2"](True)) is not None) == proved


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_proves_nothing(parity, tmp_path, value):
    """Also in a state of a head that the tried word does not reach."""
    model = parity(0.0)
    with torch.no_grad():
        model.model.layers[0].mixer.cells[0].values[1, 2, 0] = value
        model.score.weight.neg_()
    assert prove(take_apart(model), TASKS["z2"](True)) is None


@pytest.mark.parametrize("bias", [1e12, 1e17])
def test_a_lead_that_rounding_swallows(parity, bias):
    """All logits are the same number, and the bound of their difference is not."""
    model = parity(0.0)
    with torch.no_grad():
        model.score.bias.fill_(bias)
        model.model.layers[0].mixer.out_proj.weight.mul_(1e-4)
    assert prove(take_apart(model), TASKS["z2"](True)) is None
