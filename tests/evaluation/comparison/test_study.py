import pytest
from made_up_studies import STUDY, make_study, write_study

from hybridlm.errors import UserError
from hybridlm.evaluation.comparison.study import read_study


def test_it_is_read(tmp_path):
    study = make_study(tmp_path)
    assert list(study.models) == ["fading", "both"]
    assert (study.rates, study.seeds, study.lengths) == ((0.01, 0.02, 0.04), (5, 6), (4, 8))
    config = study.config("both", "search", 0.02, 6)
    assert (config.model["pattern"], config.model["hidden_size"]) == ("rglru bmru", 16)
    assert (config.optimizer.lr, config.training.seed, config.training.steps) == (0.02, 6, 2)
    assert study.config("both", "final", 0.02, 6).training.steps == 3


def test_lengths_may_be_left_out_or_written_short(tmp_path):
    short = STUDY.replace("lengths: [4, 8]", "lengths: [512, 2k]")
    assert make_study(tmp_path, short).lengths == (512, 2048)
    (tmp_path / "study.yaml").write_text(STUDY.replace("lengths: [4, 8]", ""))
    assert read_study(tmp_path / "study.yaml").lengths == ()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rates: [0.01, 0.02, 0.04]", "rates: [0.02, 0.01]", "rates.*must ascend"),
        ("rates: [0.01, 0.02, 0.04]", "rates: []", "rates"),
        ("rates: [0.01, 0.02, 0.04]", "rates: [-1]", r"rates\.0=-1"),
        ("search: {training.steps: 2}", "", "search: must be given where there are several rates"),
        ("seeds: [5, 6]", "seeds: [5, 5]", "seeds.*must differ"),
        ("recipe: recipe.yaml", "", "recipe: must be given"),
        ("recipe: recipe.yaml", "recipe: none.yaml", "No recipe at .*none.yaml"),
        ("seeds: [5, 6]", "sedes: [5, 6]", "sedes"),
        (
            "both: {model.pattern: rglru bmru}",
            "both: {model.pattern: rglru bmur}",
            "model 'both'.*unknown mixer 'bmur'",
        ),
        (
            "both: {model.pattern: rglru bmru}",
            "both: {optimizer.lr: 1}",
            "models.both: optimizer.lr is set by the study",
        ),
        ("  both: {", "  fading*: {", "'fading[*]' needs letters and digits that differ from those of 'fading'"),
        ("  both: {", "  '*': {", "needs letters"),
        ("final: {training.steps: 3}", "final: {run.name: x}", "final: run.name is set by the study"),
        ("final: {training.steps: 3}", "final: {training.stepz: 3}", "stepz"),
        ("lengths: [4, 8]", "lengths: [8, 4]", "lengths"),
        (
            "search: {training.steps: 2}",
            "search: {data.prepare.validation.share: 0.0}",
            "validation.share=0, and models are compared",
        ),
    ],
)
def test_what_is_wrong_is_said(tmp_path, old, new, said):
    assert old in STUDY
    with pytest.raises(UserError, match=rf"(?s){said}"):
        read_study(write_study(tmp_path, STUDY.replace(old, new)))


def test_what_is_no_study_is_refused(tmp_path):
    with pytest.raises(UserError, match="No study at"):
        read_study(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(UserError, match="must be a mapping"):
        read_study(tmp_path / "list.yaml")
