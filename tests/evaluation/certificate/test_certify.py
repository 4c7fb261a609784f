"""`certify` on models whose weights are set by hand, so that what they do is known."""

import json

import pytest
import torch

from hybridlm import HybridLMConfig, HybridLMForCausalLM, HybridLMForTokenClassification
from hybridlm.cli import main
from hybridlm.errors import UserError
from hybridlm.evaluation.certificate import exploring
from hybridlm.evaluation.certificate.certify import certify_checkpoint
from hybridlm.evaluation.certificate.decisions import HOLD, RESET, SET, watching
from hybridlm.evaluation.certificate.exploring import explore
from hybridlm.evaluation.certificate.stepping import Stepper
from hybridlm.evaluation.memory.registry import TASKS
from hybridlm.model.cells_bmru import BmruCell
from hybridlm.model.mixers_hybridlm import CELLS, MIXERS

FLIP_FLOP = "flip_flop_dense"


@pytest.fixture
def latch():
    """One layer of four bistable units; the first is reset by letter 1, set by letter 2, and alone answers. The second
    is set and the third reset by every letter; the fourth is never written."""
    model = HybridLMForTokenClassification(
        HybridLMConfig(
            pattern="bmru", vocab_size=3, num_labels=2, hidden_size=4, num_attention_heads=1, conv_kernel=0,
            output_gate=False, intermediate_size=4, rms_norm_eps=1e-12,
        )
    )  # fmt: skip
    weights = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    layer, cell = "model.layers.0.", "model.layers.0.mixer.cells.0."
    for name in (f"{layer}mixer_norm.weight", f"{layer}mlp_norm.weight", "model.norm.weight", f"{cell}alpha"):
        weights[name] += 1
    weights["model.embed_tokens.weight"] = torch.eye(4)[:3]  # of length 2 once normed
    weights[f"{layer}mixer.in_proj.weight"] = torch.eye(4)
    weights[f"{layer}mixer.out_proj.weight"][3, 0] = 1
    weights[f"{cell}s0"] -= 1
    weights[f"{cell}candidate.weight"][0] = torch.tensor([0.0, -1, 1, 0])
    weights[f"{cell}candidate.bias"][1:] = torch.tensor([1.5, -1.5, 0.75])
    weights[f"{cell}threshold.bias"] += 1
    weights["score.weight"][:, 3] = torch.tensor([-1.0, 1])
    model.load_state_dict(weights)
    return model


def saved(model, tmp_path, task=FLIP_FLOP):
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    if task is not None:
        (folder / "memory_suite.json").write_text(json.dumps({"task": task}))
    return folder


def test_correct(latch, tmp_path, capsys):
    folder = saved(latch, tmp_path)
    assert main(["certify", str(folder)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("flip_flop_dense, bmru: correct at every length (in float64)\n")
    assert "2 states when those that answer alike are one: the task's own" in out
    assert "state 1       1/1  0/0  1/1" in out
    assert "units       2 always written, 1 latch, 1 never written" in out
    assert "  0.0     set by 2; reset by 1; held by 0" in out
    facts = json.loads((folder / "evaluation" / "certificate-flip_flop_dense.json").read_text())
    assert (facts["verdict"], facts["same_automaton"], facts["all_words_to"]) == ("correct", True, 2)
    assert facts["run"] is None  # the folder does not say which
    # In front of a text the second unit is not set yet, so that state comes once.
    assert facts["states"] == 3
    assert facts["margin_of_decisions"] == pytest.approx(0.25)
    kinds = [unit["kind"] for unit in facts["latches"]]
    assert kinds == ["latch", "always written", "always written", "never written"]


def test_wrong_from_the_first_letter(latch, tmp_path, capsys):
    """A unit that starts as if it had been set."""
    latch.model.layers[0].mixer.cells[0].s0.fill_(1)
    folder = saved(latch, tmp_path)
    assert main(["certify", str(folder), "--out", str(tmp_path / "found.json")]) == 0
    assert "it says 1, right is 0" in capsys.readouterr().out
    facts = json.loads((tmp_path / "found.json").read_text())
    assert (facts["verdict"], facts["word"], facts["said"], facts["right"]) == ("wrong", [0], 1, 0)
    assert facts["same_automaton"] is False
    assert not (folder / "evaluation").exists()


def test_a_wrong_model_is_not_followed_for_long(latch, tmp_path, monkeypatch):
    """Once it is known to be wrong, the rest is of less interest; a right one is followed to the limit."""
    monkeypatch.setattr(exploring, "LIMIT_WHEN_WRONG", 1)
    assert certify_checkpoint(saved(latch, tmp_path))["closed"]
    latch.model.layers[0].mixer.cells[0].s0.fill_(1)
    facts = certify_checkpoint(saved(latch, tmp_path))
    assert (facts["verdict"], facts["word"], facts["closed"], facts["automaton"]) == ("wrong", [0], False, None)


def test_open_where_there_are_too_many_states(latch, tmp_path, capsys):
    folder = saved(latch, tmp_path)
    assert main(["certify", str(folder), "--limit", "1"]) == 0
    out = capsys.readouterr().out
    assert "open. No wrong answer on any word up to length 1; not certain: states, or pairs" in out
    assert "not seen whole; the task's has 2 states" in out


def test_open_where_a_decision_is_too_close(latch, tmp_path):
    with torch.no_grad():
        latch.model.layers[0].mixer.cells[0].candidate.bias[3] = 1 - 1e-9  # in float32: the threshold itself
    facts = certify_checkpoint(saved(latch, tmp_path))
    assert (facts["verdict"], facts["closed"], facts["margin_of_decisions"]) == ("open", True, 0.0)
    assert facts["why"] == "a decision is too close to call (margin 0)"


def test_a_close_decision_that_rounding_cannot_reach(latch, tmp_path):
    with torch.no_grad():
        latch.model.layers[0].mixer.cells[0].candidate.bias[3] = 1 - 6e-8  # the next to the threshold
    facts = certify_checkpoint(saved(latch, tmp_path))
    assert facts["verdict"] == "correct"
    assert 0 < facts["margin_of_decisions"] < 1e-7


def test_real_numbers_are_never_certain(latch, tmp_path):
    """A layer of lru that adds nothing to the right answers, but carries what never recurs."""
    config = HybridLMConfig.from_dict({**latch.config.to_dict(), "pattern": "bmru lru"})
    model = HybridLMForTokenClassification(config)
    model.load_state_dict(latch.state_dict(), strict=False)
    with torch.no_grad():
        layer = model.model.layers[1]
        layer.mixer.out_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    facts = certify_checkpoint(saved(model, tmp_path), limit=50)
    assert facts["verdict"] == "open"
    assert facts["why"] == "layer 1 (lru): numbers that need not recur"


def test_own_dtype_is_named(latch, tmp_path, capsys):
    assert main(["certify", str(saved(latch.bfloat16(), tmp_path))]) == 0
    assert "9 steps, in float64; all the same in bfloat16" in capsys.readouterr().out


def test_states_that_only_seem_one(latch, tmp_path):
    """A window's difference of less than the resolution, which the next step makes large."""
    config = HybridLMConfig.from_dict({**latch.config.to_dict(), "conv_kernel": 2})
    model = HybridLMForTokenClassification(config)
    model.load_state_dict(latch.state_dict(), strict=False)
    with torch.no_grad():
        mixer = model.model.layers[0].mixer
        mixer.in_proj.weight.copy_(2.5e-11 * torch.eye(4))
        mixer.conv.weight.zero_()
        mixer.conv.bias.zero_()
        mixer.conv.weight[..., 0] = 4e10  # of the letter before
    facts = certify_checkpoint(saved(model, tmp_path))
    assert facts["verdict"] != "correct"
    assert facts["spread"] > 1e-12


def behind(latch, scale):
    """The same model with a window of one letter, whose numbers are scaled down and what reads them up. It is wrong
    where letter 2 comes behind letter 1: that resets the latch."""
    config = HybridLMConfig.from_dict({**latch.config.to_dict(), "conv_kernel": 2})
    model = HybridLMForTokenClassification(config)
    model.load_state_dict(latch.state_dict(), strict=False)
    with torch.no_grad():
        mixer = model.model.layers[0].mixer
        mixer.in_proj.weight.copy_(torch.eye(4)[[0, 1, 2, 1]] / scale)
        mixer.conv.weight.copy_(torch.tensor([[0, 1.0], [0, 1], [0, 1], [1, 0]]) * scale)
        mixer.conv.bias.zero_()
        mixer.cells[0].candidate.weight[0, 3] = -4
    return model


OFF = " steps come out otherwise where numbers are off by 9e-13 of their size"


@pytest.mark.parametrize("scale", [1.0, 2.0**42, 2.0**46])
def test_what_seems_rounding_may_decide(latch, tmp_path, scale):
    """Windows that differ by less than rounding may make them, and a convolution that makes that large."""
    model = behind(latch, scale)
    assert model(torch.tensor([[1, 2]])).logits[0, 1].argmax() == 0
    facts = certify_checkpoint(saved(model, tmp_path))
    if scale == 1:
        assert (facts["verdict"], facts["word"], facts["right"]) == ("wrong", [1, 2], 1)
    else:
        assert facts["verdict"] == "open"
        assert ("count as one differ by 5e-13" if scale < 2.0**46 else OFF) in facts["why"]


def test_open_where_rounding_decides(latch, tmp_path):
    """A drive of 1e16 + 2 - 1e16, which depends on the order in which that is added up."""
    with torch.no_grad():
        latch.model.embed_tokens.weight[:, 3] = 1
        mixer, cell = latch.model.layers[0].mixer, latch.model.layers[0].mixer.cells[0]
        mixer.in_proj.weight[:3, 3] = 1
        mixer.out_proj.weight[3, 0] = 3
        cell.candidate.weight[3] = torch.tensor([1e16, 1.0, 1.0, -1e16])
    facts = certify_checkpoint(saved(latch, tmp_path))
    assert (facts["verdict"], facts["closed"]) == ("open", True)
    assert facts["why"].endswith(OFF)


def test_a_unit_that_holds_at_the_start_alone_is_no_latch(latch, tmp_path):
    """The letter before sets or resets it, and in front of the first there is none."""
    model = behind(latch, 1.0)
    with torch.no_grad():
        cell = model.model.layers[0].mixer.cells[0]
        model.model.layers[0].mixer.in_proj.weight[3] = torch.tensor([1.0, -1, 1, 0])
        cell.candidate.weight[0, 3], cell.candidate.weight[1, 3], cell.candidate.bias[1] = 0, 1, 0
    facts = certify_checkpoint(saved(model, tmp_path))
    assert facts["verdict"] == "correct"
    assert [unit["kind"] for unit in facts["latches"]][:2] == ["latch", "held one way"]
    assert set(facts["latches"][1]["hold"]) == {"0", "1", "2"}


def test_cells_of_others_are_not_certain(latch, tmp_path, monkeypatch):
    """How clearly they decide is not watched."""

    class Mine(BmruCell):
        record = BmruCell.record

    monkeypatch.setitem(CELLS, "mine", Mine)
    monkeypatch.setitem(MIXERS, "mine", Mine)
    model = HybridLMForTokenClassification(HybridLMConfig.from_dict({**latch.config.to_dict(), "pattern": "mine"}))
    model.load_state_dict(latch.state_dict())
    facts = certify_checkpoint(saved(model, tmp_path))
    assert (facts["verdict"], facts["closed"]) == ("open", True)
    assert facts["why"] == "layer 0 (mine): how clearly it decides is not known"


def test_right_in_its_own_dtype_alone(latch, tmp_path, capsys):
    """Logits that float32 cannot tell apart, where the first is right."""
    with torch.no_grad():
        latch.score.bias.fill_(1)
        latch.score.weight.zero_()[1, 0] = 1e-10
    assert main(["certify", str(saved(latch, tmp_path))]) == 0
    assert "  it says 1 in float64 and 0 in float32, right is 0\n" in capsys.readouterr().out


def test_a_long_forward_must_agree(latch, tmp_path, monkeypatch):
    """One letter of many is answered otherwise than by steps."""
    answers = Stepper.answers

    def spoiled(self, words):
        said = answers(self, words)
        said[5, 200] = 1 - said[5, 200]
        return said

    monkeypatch.setattr(Stepper, "answers", spoiled)
    facts = certify_checkpoint(saved(latch, tmp_path))
    assert facts["verdict"] == "open"
    assert facts["why"] == "one forward over long words answers otherwise than the steps"


def test_steps_and_one_forward_that_disagree(latch, tmp_path, monkeypatch):
    """Words up to the one in question are right."""
    latch.model.layers[0].mixer.cells[0].s0.fill_(1)
    monkeypatch.setattr(Stepper, "answer", lambda self, word: 0)
    facts = certify_checkpoint(saved(latch, tmp_path))
    assert (facts["verdict"], facts["all_words_to"]) == ("open", 0)
    assert facts["why"] == "steps and one forward answer otherwise on 0, by rounding"


def test_units_are_counted_once_for_every_state_and_letter(latch):
    stepper, task = Stepper(latch), TASKS[FLIP_FLOP](True)
    with watching(stepper, 3) as decisions:
        seen = explore(stepper, task, 100)
    (latches,) = decisions.latches
    assert latches.counts.sum(1).tolist() == [[seen.states] * 4] * 3
    assert latches.counts[:, :, 0].argmax(1).tolist() == [HOLD, RESET, SET]
    assert latches.counts[:, :, 1].argmax(1).tolist() == [SET] * 3
    assert latches.counts[:, :, 2].argmax(1).tolist() == [RESET] * 3
    assert latches.counts[:, :, 3].argmax(1).tolist() == [HOLD] * 3
    assert not any(module._forward_hooks for module in latch.modules())


@pytest.mark.parametrize("pattern", ["nfsm", "fqbmru+nfsm"])
def test_margins_of_other_cells(pattern):
    torch.manual_seed(1)
    config = HybridLMConfig(
        pattern=pattern, vocab_size=3, num_labels=2, hidden_size=4, num_attention_heads=1, conv_kernel=0, nfsm_heads=2,
        nfsm_states=3,
    )  # fmt: skip
    stepper = Stepper(HybridLMForTokenClassification(config))
    with watching(stepper, 3) as decisions:
        stepper.step(stepper.start(), torch.tensor([2]).numpy())
    cells = stepper.model.model.layers[0].mixer.cells
    kept = []
    handle = cells[0].register_forward_hook(lambda _cell, inputs, _output: kept.append(inputs[0][0, 0]))
    stepper.step(stepper.start(), torch.tensor([2]).numpy())
    handle.remove()
    expected = []
    for cell in cells:
        if hasattr(cell, "drive"):
            u = torch.relu(cell.drive(kept[0]))
            expected += [(u - 0.5).abs().min(), (u - 1.5).abs().min()]
        else:
            theta = cell.transition(kept[0]).view(2, 3, 3) + cell.transition_bias
            best = theta[:, 0].sort(dim=-1).values  # both heads start in state 0
            expected.append((best[:, -1] - best[:, -2]).min())
    assert decisions.margin == pytest.approx(min(expected).item(), abs=1e-12)


def test_what_cannot_be_compared(latch, tmp_path, capsys):
    folder = saved(latch, tmp_path, task=None)
    language_model = HybridLMForCausalLM(
        HybridLMConfig(pattern="bmru", vocab_size=3, hidden_size=4, num_attention_heads=1)
    )
    language_model.save_pretrained(tmp_path / "lm")
    config = HybridLMConfig(pattern="attention", vocab_size=3, num_labels=2, hidden_size=4, num_attention_heads=1)
    HybridLMForTokenClassification(config).save_pretrained(tmp_path / "attention")
    for words, said in (
        ([str(folder)], "does not say what it was trained on (memory_suite.json). Give --task, one of parity, "),
        (["owner/model"], "no local folder, so what it was trained on is not known. Give --task, one of parity, "),
        (["owner/model"], "; and --out FILE.json."),
        (["owner/model", "--task", "s3"], "Give --out FILE.json"),
        ([str(folder), "--task", "s9"], "task='s9': no automaton of the suite"),
        ([str(folder), "--task", "mqar"], "task='mqar': no automaton of the suite"),
        ([str(folder), "--task", "s3"], "task='s3': has 6 tokens, and checkpoint"),
        ([str(folder), "--task", FLIP_FLOP, "--limit", "0"], "limit=0: must be at least 1"),
        ([str(tmp_path / "lm"), "--task", FLIP_FLOP], "a HybridLMForCausalLM. An automaton is read out of a"),
        (
            [str(tmp_path / "attention"), "--task", FLIP_FLOP],
            "layer 0 is attention, whose keys and values are no finite state",
        ),
        ([str(tmp_path / "nothing")], "there is no such folder"),
        ([str(folder), "--task", FLIP_FLOP, "--out", str(tmp_path / "no" / "x.json")], "does not exist"),
    ):
        assert main(["certify", *words]) == 2
        assert said in capsys.readouterr().err


def test_of_equal_answers_the_first_is_given(tmp_path):
    """As `argmax` does, which the suite counts with."""
    config = HybridLMConfig(pattern="bmru", vocab_size=6, num_labels=6, hidden_size=4, num_attention_heads=1)
    model = HybridLMForTokenClassification(config)
    with torch.no_grad():
        model.score.weight.zero_()
    facts = certify_checkpoint(saved(model, tmp_path, "s3"), limit=50)
    assert (facts["verdict"], facts["word"], facts["said"]) == ("wrong", [1], 0)


@pytest.mark.parametrize(
    "change",
    [{"architectures": 5}, {"num_labels": "x"}, {"id2label": [1]}, {"dtype": "float99"}, {"model_type": "llama"}],
)
def test_configurations_that_are_none(latch, tmp_path, capsys, change):
    folder = saved(latch, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    assert main(["certify", str(folder)]) == 2
    assert f"checkpoint {folder}: " in capsys.readouterr().err


@pytest.mark.parametrize("record", ["[" * 5000, "[]", '{"task": 5}', "\0"])
def test_records_that_are_none(latch, tmp_path, capsys, record):
    folder = saved(latch, tmp_path, task=None)
    (folder / "memory_suite.json").write_text(record)
    assert main(["certify", str(folder)]) == 2
    assert "it does not say what it was trained on (memory_suite.json). Give --task" in capsys.readouterr().err


def test_names_of_tasks_may_be_capital(latch, tmp_path, capsys):
    assert main(["certify", str(saved(latch, tmp_path)), "--task", "Flip_Flop_Dense"]) == 0


def test_weights_that_are_no_numbers(latch, tmp_path):
    with torch.no_grad():
        latch.score.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match=r"no number\. Give one that was trained to the end"):
        certify_checkpoint(saved(latch, tmp_path))
