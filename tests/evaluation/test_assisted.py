"""What a draft gains: the same tokens, forwards counted, ratios of the same run; and a draft that is trained once."""

import itertools
from pathlib import Path

import pytest
import torch
from launching import launch

from hybridlm.errors import UserError
from hybridlm.evaluation.assisted import (
    DRAFT,
    GREEDY,
    LOOKUP,
    compare,
    deepened,
    held_out_prompts,
    recipe_of,
    repeated,
    table,
    train_draft,
)
from hybridlm.training.config import load_config
from hybridlm.training.loop import pretrain

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_assisted.py"
SMALL = ("model.pattern=rglru", "model.hidden_size=16", "model.num_attention_heads=2", "training.steps=3")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of three steps on a text that says the same again and again."""
    folder = tmp_path_factory.mktemp("assisted")
    text = folder / "text.txt"
    text.write_text(
        "The ball was given, and nobody danced. The rain fell, and everybody read.\n" * 80, encoding="utf-8"
    )
    config = {
        "data.prepare.sources": f"[{{path: {text}}}]",
        "data.prepare.output": folder / "data",
        "data.prepare.vocab_size": 300,
        "data.prepare.validation": "{by: position, share: 0.2}",
        "data.sequence_length": 32,
        "training.batch_size": 2,
        "validation.at_start": "false",
        "run.folder": folder,
        "run.name": "run",
    }
    return pretrain(load_config(None, [f"{name}={value}" for name, value in config.items()] + [*SMALL]))


def test_modes_write_the_same_and_are_counted(build):
    """A draft that is the target itself is always right: every forward of the target keeps all guesses. Time is a clock
    that counts: greedy takes 6 ticks, every other mode 2."""
    torch.manual_seed(0)
    target, draft = build("rglru bmru"), build("rglru bmru")
    draft.generation_config.assistant_confidence_threshold = 0.0
    prompts = [torch.randint(3, 250, (1, 12)) for _ in range(2)]
    ticks = itertools.accumulate(itertools.cycle([0, 6, 0, 2, 0, 2]))
    rows = compare(target, draft, {"a": prompts, "b": repeated(prompts)}, max_new_tokens=18, guesses=5, rounds=2,
                   clock=lambda: float(next(ticks)))  # fmt: skip
    assert [(row.text, row.mode) for row in rows] == [(kind, mode) for kind in "ab" for mode in (GREEDY, LOOKUP, DRAFT)]
    assert all(row.same for row in rows)
    for row in rows:
        assert row.tokens_per_second == pytest.approx(36 / (6 if row.mode == GREEDY else 2))
        assert row.ratio == pytest.approx(1 if row.mode == GREEDY else 3)
    by = {(row.text, row.mode): row.accepted for row in rows}
    assert by["a", GREEDY] == 0
    assert by["a", DRAFT] == pytest.approx(5)  # 18 tokens in 3 forwards
    assert by["b", LOOKUP] >= 0
    assert len(table(rows).splitlines()) == 7


def test_other_tokens_than_greedy_are_told(build, monkeypatch):
    target, draft = build("rglru bmru"), build("lru")
    plain = type(target).generate

    def wrong(self, *given, **options):
        text = plain(self, *given, **options)
        if "prompt_lookup_num_tokens" in options:
            text[0, -1] += 1
        return text

    monkeypatch.setattr(type(target), "generate", wrong)
    rows = compare(target, draft, {"a": [torch.randint(3, 250, (1, 9))]}, max_new_tokens=4, rounds=1)
    assert [row.same for row in rows] == [True, False, True]
    assert "NO" in table(rows)


def test_a_draft_that_cannot_serve(build):
    with pytest.raises(UserError, match="trained with the target's tokenizer"):
        compare(build("lru"), build("lru", vocab_size=77), {})
    with pytest.raises(UserError, match="guesses=0: must be at least 1"):
        compare(build("lru"), build("lru"), {}, guesses=0)


@pytest.mark.parametrize("pattern", ["rglru bmru", "mamba2 attention"])
def test_a_deeper_target_writes_the_same(build, pattern):
    model, ids = build(pattern, mamba_d_head=8), torch.randint(3, 250, (2, 11))
    deep = deepened(model, 3)
    assert deep.config.num_hidden_layers == 6
    assert deep.num_parameters() > 2 * model.num_parameters() - model.get_input_embeddings().weight.numel()
    with torch.no_grad():
        assert torch.equal(deep(ids).logits, model(ids).logits)
    with pytest.raises(UserError, match="times=0"):
        deepened(model, 0)


def test_repeated():
    assert repeated([torch.arange(7)[None]])[0].tolist() == [[0, 1, 0, 1, 0, 1]]


def test_prompts_come_from_the_held_out_end(run):
    prompts = held_out_prompts(recipe_of(run.checkpoint), 3, 20)
    assert [prompt.shape for prompt in prompts] == [(1, 20)] * 3
    assert len({tuple(prompt[0].tolist()) for prompt in prompts}) > 1
    with pytest.raises(UserError, match="Ask for fewer or shorter ones"):
        held_out_prompts(recipe_of(run.checkpoint), 1000, 1000)


def test_no_run_around_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match="no run of `hybridlm pretrain` is around it"):
        recipe_of(tmp_path / "model" / "final")


def test_a_draft_is_trained_once(run, tmp_path, capsys):
    """With the data and tokenizer of the target."""
    overrides = [*SMALL, "training.steps=2", "model.hidden_size=8"]
    first = train_draft(run.checkpoint, tmp_path / "draft", overrides)
    capsys.readouterr()
    assert train_draft(run.checkpoint, tmp_path / "draft", overrides) == first == tmp_path / "draft" / "final"
    assert "This run is finished" in capsys.readouterr().out
    tokenizers = [(folder / "tokenizer.json").read_bytes() for folder in (first, run.checkpoint)]
    assert tokenizers[0] == tokenizers[1]
    with pytest.raises(UserError):
        train_draft(run.checkpoint, tmp_path / "draft", [*SMALL, "training.steps=2"])


def test_the_script(run, tmp_path):
    command = [SCRIPT, run.checkpoint, "--draft", tmp_path / "draft", "--prompts", "1", "--rounds", "1"]
    command += ["--prompt-tokens", "12", "--new-tokens", "8"]
    command += [part for field in SMALL for part in ("--set", field)]
    result = launch(command)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("yes") == 6
    missing = launch([SCRIPT, tmp_path / "nothing" / "final"])
    assert missing.returncode == 2
    assert "error: checkpoint" in missing.stderr
