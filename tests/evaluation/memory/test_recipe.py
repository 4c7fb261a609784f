"""The recipe of the suite: what can be set, and what is refused."""

import re

import pytest

from hybridlm.errors import UserError
from hybridlm.evaluation.memory.recipe import (
    Recipe,
    named_recipe,
    named_settings,
    others_than_made_for,
    read_settings,
    recipe_from,
    recipe_help,
)


def test_default_changes_nothing():
    assert recipe_from({}) == Recipe()
    assert Recipe().changed() == {}


def test_fields_of_recipe_and_model():
    recipe = recipe_from(read_settings(["lr=1e-3", "threshold_init=0.25", "output_gate=false", "steps=7"]))
    assert (recipe.lr, recipe.steps) == (1e-3, 7)
    assert recipe.changed() == {"lr": 1e-3, "steps": 7, "threshold_init": 0.25, "output_gate": False}
    config = recipe.config("bmru", 5)
    assert (config.threshold_init, config.output_gate, config.vocab_size) == (0.25, False, 5)
    assert recipe.optimizer.lr == 1e-3


def test_value_of_default_is_no_change():
    settings = read_settings(["lr=3e-3", "threshold_init=1", "num_attention_heads=4"])
    assert recipe_from(settings).changed() == {}


@pytest.mark.parametrize(
    ("mixer", "layers"),
    [("bmru", ("bmru", "bmru")), ("lru bmru", ("lru", "bmru")), ("rglru+bmru", ("rglru+bmru", "rglru+bmru"))],
)
def test_mixer_is_repeated(mixer, layers):
    assert Recipe().config(mixer).block_types == layers


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["lr=0"], "set lr=0: Input should be greater than 0."),
        (["lr=fast"], "set lr='fast': Input should be a valid number."),
        (["steps=0"], "set steps=0: Input should be greater than or equal to 1."),
        (["treshold_init=1"], "set treshold_init: no such field; did you mean 'threshold_init'?"),
        (["pattern=lru"], "set pattern: no such field"),
        (["length_start=64"], "set length_start=64: Input should be less than 64."),
        (["length_full=0.5"], "set length_full=0.5: has no effect without length_start"),
        (["lr"], "set 'lr': write it as FIELD=VALUE"),
        (["lr=1", "lr=2"], "set lr: given twice"),
        (["lr=["], "set 'lr=[': the value is not valid YAML"),
        (["epsilon_hold=0.5"], "set epsilon_hold, epsilon_zero: hold=0.5 must not be above zero=0.17"),
    ],
)
def test_refused(settings, message):
    with pytest.raises(UserError, match=re.escape(message)):
        recipe_from(read_settings(settings))


def test_sequences_grow_by_equal_factors():
    assert [Recipe().length(step, 100, 64) for step in (0, 50, 99)] == [64] * 3
    growing = Recipe(length_start=2, length_full=0.5)
    assert [growing.length(step, 100, 64) for step in (0, 10, 20, 30, 40, 50, 99)] == [2, 4, 8, 16, 32, 64, 64]


def test_a_named_recipe_says_for_which_mixer_it_is_made():
    assert others_than_made_for(None, ["gru"]) is None
    assert others_than_made_for("finite-state", ["nfsm", "bmru + nfsm", "lru nfsm"]) is None
    assert others_than_made_for("finite-state", ["nfsm", "gru", "lru bmru"]) == (
        "Recipe finite-state is made for nfsm; gru, lru bmru will run with it too."
    )


def test_config_names_the_mixer():
    with pytest.raises(UserError, match=r"mixer 'bmrru'.*'bmrru'"):
        Recipe().config("bmrru")
    with pytest.raises(UserError, match=r"mixer 'bmru'.*threshold_init=-1"):
        recipe_from({"threshold_init": -1}).config("bmru")
    with pytest.raises(UserError, match=r"layers=3: not a multiple of the 2 layers of the mixer 'lru bmru'"):
        recipe_from({"layers": 3}).config("lru bmru")


def test_named_recipe_is_known_by_what_it_changes():
    """Also beside other changes, and where up to two of its own fields are at the default again, or elsewhere."""
    fields = named_settings("finite-state")
    assert named_settings(None) == {}
    recipe = recipe_from({**fields, "nfsm_states": 16})
    assert named_recipe(recipe.changed()) == ("finite-state", {"nfsm_states": 16})
    assert named_recipe(recipe_from({**fields, "layers": 2, "lr": 1e-2}).changed()) == (
        "finite-state", {"layers": 2, "lr": 1e-2},
    )  # fmt: skip
    mlp = recipe_from({**fields, "width": 128, "intermediate_size": 256}).changed()
    assert named_recipe(mlp) == ("finite-state", {"width": 128, "intermediate_size": 256})
    three = recipe_from({**fields, "layers": 2, "intermediate_size": 128, "conv_kernel": 4}).changed()
    assert named_recipe(three) == (None, three)
    assert named_recipe({}) == (None, {})
    config = recipe.config("nfsm")
    assert (config.block_types, config.mlp_size, config.conv_kernel, config.output_gate) == (("nfsm",), 0, 0, False)
    with pytest.raises(UserError, match=r"recipe='finite': there is none; did you mean 'finite-state'\?"):
        named_settings("finite")
    assert "finite-state\n      layers=1 " in recipe_help()
