"""Recipes: strict, with all problems at once, and stable through YAML."""

import json
import re
from itertools import pairwise

import pytest
from transformers import PreTrainedConfig

from hybridlm import HybridLMConfig
from hybridlm.errors import UserError
from hybridlm.training.config import config_help, config_yaml, load_config
from hybridlm.training.sections import FROM_TOKENIZER, MuonConfig

LEAST = ["data.folder=somewhere", "training.steps=3"]


def problems_of(*overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_config(None, [*LEAST, *overrides])
    return [line for line in str(caught.value).splitlines() if line.startswith("  - ")]


def test_every_problem_is_reported_at_once():
    found = problems_of(
        "optimizer.lr=-1",
        "trainin.steps=3",
        "training.batch_sise=4",
        "model.pattern=rglru bmruu",
        "training.seed=true",
        "nonsense",
        "mine.yaml",
    )
    assert len(found) == 7
    text = "\n".join(found)
    assert "optimizer.lr=-1: input should be greater than 0. (Peak learning rate.)" in text
    assert "did you mean 'training'?" in text
    assert "did you mean 'batch_size'?" in text
    assert "did you mean 'bmru'?" in text
    assert "training.seed=true" in text
    assert "override 'nonsense': write it as SECTION.FIELD=VALUE" in text
    assert "A recipe is given as --config mine.yaml" in text


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.tokens=5", "exactly one of 'steps', 'tokens' and 'epochs'"),
        ("training.micro_batch_size=3", "multiple of micro_batch_size=3"),
        ("epsilon.hold=0.5", "hold=0.5 must not be above zero=0.17"),
        ("model.vocab_size=5", "remove vocab_size"),
        ("model.hidden_sise=5", "did you mean 'hidden_size'?"),
        ("data.folder=null", "'folder' (a prepared data folder) and 'prepare' (how to make one); found neither"),
        ("schedule={warmup_steps: 3, warmup_share: 0.1}", "only one of 'warmup_steps' and 'warmup_share'"),
        ("schedule={kind: wsd, warmup_share: 0.5, decay_share: 0.6}", "more than the whole run"),
        ("schedule.kind=step", "'cosine', 'wsd' or 'linear'"),
        ("optimizer.muon={momentum: 0.9}", "'muon' is given, but kind=adamw"),
        ("optimizer={kind: muon, muon: {ns_steps: 100}}", "optimizer.muon.ns_steps=100"),
        ("training.ema_decay=1", "training.ema_decay=1"),
        ("validation={every: 0, patience: 2}", "every=0 has none on the way"),
        ("validation.min_improvement=0.1", "min_improvement is for patience"),
        ("optimizer.betas=[0.9, 1.5]", "optimizer.betas.1=1.5: input should be less than 1"),
        ("optimizer.lr=.inf", "finite number"),
        ("run.name=a/b", "run.name='a/b'"),
        ("training.steps.more=3", "training.steps is 3, which has no fields"),
        ("training.batch_size='8'", "training.batch_size='8': must be a whole number. (Sequences"),
        (
            "data.prepare={sources: [{pth: a}], output: b}",
            "did you mean 'path'? Fields of data.prepare.sources.0: path,",
        ),
        (
            "data.prepare={sources: {path: a}, output: b}",
            "data.prepare.sources={'path': 'a'}: must be a list, as [a, b]",
        ),
        ("logging.samples.evry=3", "logging.samples.evry=3: no such field; did you mean 'every'? Fields of logging.s"),
        ("steps=3", "steps=3: no such field; did you mean 'training.steps'?"),
        ("batch_size=3", "did you mean 'training.batch_size' or 'validation.batch_size'?"),
        ("training..steps=3", "override 'training..steps=3': a name is missing beside a dot"),
        ("optimizer.betas=0.9", "optimizer.betas=0.9: must be a list, as [0.9, 0.95]. (Decay"),
        ("optimizer=null", "optimizer=null: must be a section"),
        ("training.deterministic=1", "training.deterministic=1: must be true or false"),
        ("training.mixed_precision=false", "training.mixed_precision=false: input should be 'no', 'bf16' or 'fp16'"),
        ("checkpoint.every={a: 1}", "checkpoint.every={'a': 1}: must be a whole number. (Steps"),
        ("run.name=7", "run.name=7: must be text; a number is text in quotes that YAML sees, as \"'7'\""),
    ],
)
def test_one_problem_names_field_and_what_is_allowed(override, says):
    found = problems_of(override)
    assert len(found) == 1
    assert says in found[0]


def test_entries_of_lists_can_be_set(tmp_path):
    path = tmp_path / "two.yaml"
    path.write_text("data: {prepare: {sources: [{path: a}, {path: b}], output: x}}\ntraining: {steps: 5}\n")
    config = load_config(path, ["data.prepare.sources.1.path=c"])
    assert [source.path for source in config.data.prepare.sources] == ["a", "c"]
    with pytest.raises(
        UserError, match=r"data.prepare.sources is a list; its entries are data.prepare.sources.0 to .*1"
    ):
        load_config(path, ["data.prepare.sources.2.path=c"])


def test_missing_sections_are_named():
    with pytest.raises(UserError, match=r"data: must be given[\s\S]*training: must be given"):
        load_config(None, [])


def test_numbers_are_read_as_people_write_them():
    config = load_config(None, [*LEAST, "optimizer.lr=2e-3", "training.steps=null", "training.tokens=1e6"])
    assert config.optimizer.lr == 0.002
    assert config.training.tokens == 1_000_000
    assert isinstance(config.training.tokens, int)
    assert load_config(None, [*LEAST, "training.mixed_precision=no"]).training.mixed_precision == "no"
    assert load_config(None, [*LEAST, "training.deterministic=True"]).training.deterministic is True
    assert load_config(None, [*LEAST, "run.name=2026-11-24"]).run.name == "2026-11-24"
    assert load_config(None, [*LEAST, "model.threshold_init=5e-2"]).model == {"threshold_init": 0.05}


def test_yaml_and_overrides(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text("data: {folder: x}\ntraining:\n  steps: 5\n  batch_size: 8\n", encoding="utf-8")
    config = load_config(path, ["training.batch_size=2", "optimizer.clip_norm=null"])
    assert (config.training.steps, config.training.batch_size, config.optimizer.clip_norm) == (5, 2, None)
    assert config.run.name == "small"


def test_resolved_recipe_loads_to_an_equal_one(tmp_path):
    config = load_config(
        None, [*LEAST, "optimizer.eps=1e-12", "logging.samples.prompts=['It is: a #', '']", "model.pattern=lru"]
    )
    path = tmp_path / "config.yaml"
    path.write_text(config_yaml(config), encoding="utf-8")
    again = load_config(path)
    assert again == config
    assert again.logging.samples.prompts == ["It is: a #", ""]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1", "not valid YAML"),
        ("- 1\n- 2\n", "must be a mapping"),
        ("training: {steps: 1}\ntraining: {steps: 2}\n", "'training' is given twice"),
    ],
)
def test_bad_files(tmp_path, text, says):
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(says)):
        load_config(path)


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(UserError, match="No recipe at"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="UTF-8"):
        load_config(tmp_path / "binary.yaml")


def test_help_names_every_field_with_its_meaning():
    text = config_help()
    for name in (
        "optimizer.lr (number) = 0.002",
        "data.prepare (section)",
        "logging.samples.temperature",
        "model (mapping)",
    ):
        assert name in text
    assert "training.steps (integer or null) = null" in text
    assert 'data.prepare.sources.N.documents (file|paragraph|line) = "file"\n      What a document is in a text' in text
    fields = [line for line in text.splitlines() if re.match(r"  \w", line)]
    meanings = [line for line in text.splitlines() if line.startswith("      ") and line.strip()]
    assert len(fields) == len(meanings) > 40


def test_help_names_what_a_model_may_be_given():
    """Every field of HybridLMConfig but those that the data decides, each with a meaning of its docstring; what is
    named is taken."""
    lines = config_help().splitlines()
    found = {line.split()[0].removeprefix("model."): number for number, line in enumerate(lines) if "  model." in line}
    own = set(HybridLMConfig.__dataclass_fields__) - set(PreTrainedConfig.__dataclass_fields__)
    assert set(found) == own - set(FROM_TOKENIZER) - {"format_version"}
    assert all(len(lines[number + 1].strip()) > 8 for number in found.values())
    assert lines[found["hidden_size"] : found["hidden_size"] + 2] == [
        "  model.hidden_size (integer) = 512", "      width of the residual stream.",
    ]  # fmt: skip
    values = {name: json.loads(lines[number].split(" = ", 1)[1]) for name, number in found.items()}
    assert HybridLMConfig(**values).to_diff_dict() == HybridLMConfig().to_diff_dict()


def test_epsilon_starts_at_zero_where_the_weights_are_trained():
    assert load_config(None, LEAST).epsilon.start == 1.0
    assert load_config(None, [*LEAST, "training.init_from=x/y"]).epsilon.start == 0.0
    assert load_config(None, [*LEAST, "training.init_from=x/y", "epsilon.start=1"]).epsilon.start == 1.0


def test_muon_gets_its_settings():
    config = load_config(None, [*LEAST, "optimizer={kind: muon, muon: {momentum: 0.9}}"]).optimizer
    assert config.muon == MuonConfig(momentum=0.9)
    assert load_config(None, [*LEAST, "optimizer.kind=muon"]).optimizer.muon == MuonConfig()
    assert load_config(None, LEAST).optimizer.muon is None


def test_a_wrong_pattern_is_told_beside_a_misspelt_field():
    with pytest.raises(UserError) as error:
        load_config(None, [*LEAST, "model={pattern: rglru bmur, hiden_size: 32}"])
    assert "did you mean 'hidden_size'" in str(error.value)
    assert "did you mean 'bmru'" in str(error.value)


LEVELS = [f"&{new} [{', '.join(9 * [f'*{old}'])}]" for old, new in pairwise("abcdefghi")]
ODD_YAML = ["!!float x", "!!int ''", "!!timestamp 99-99", "&a [*a]", "{b: &a {c: *a}}", '"a\\0b"', "[" * 5000]


@pytest.mark.parametrize("text", [*ODD_YAML, f"[&a [x], {', '.join(LEVELS)}]"])
def test_yaml_that_no_recipe_needs(tmp_path, text):
    """What PyYAML fails at in other ways than it says, what holds itself, and 43 million entries in 400 characters."""
    path = tmp_path / "recipe.yaml"
    path.write_text(f"training: {text}\n")
    with pytest.raises(UserError, match=r"recipe\.yaml is not valid YAML"):
        load_config(path)
    with pytest.raises(UserError, match="the value is not valid YAML"):
        load_config(None, [*LEAST, f"model={text}"])
