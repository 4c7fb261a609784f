"""Which runs follow from a study and its records."""

import copy
import json

import pytest
from made_up_studies import STUDY, make_study, record

from hybridlm.evaluation.comparison.jobs import Job, best_rate, counted, difference, due, final_records, searched


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path)


def asked(jobs):
    return [(job.model, job.stage, job.rate, job.seed) for job in jobs]


def searches(study, scores, model="fading"):
    return [
        record(study, model, "search", rate, 5, failed="nan" if score is None else None, bits=score)
        for rate, score in scores.items()
    ]


def test_first_comes_the_search_of_every_model(study):
    rates = (0.01, 0.02, 0.04)
    assert asked(due(study, [])) == [(model, "search", rate, 5) for model in ("fading", "both") for rate in rates]


def test_then_the_final_runs_at_the_best_rate(study):
    records = searches(study, {0.01: 2.1, 0.02: 2.0, 0.04: 2.2})
    assert best_rate(study, "fading", records) == 0.02
    own = [job for job in asked(due(study, records)) if job[0] == "fading"]
    assert own == [("fading", "final", 0.02, 5), ("fading", "final", 0.02, 6)]
    records += [record(study, "fading", "final", 0.02, 5)]
    assert [job for job in asked(due(study, records)) if job[0] == "fading"] == [("fading", "final", 0.02, 6)]


def test_the_first_seed_of_all_models_comes_before_the_second(study):
    scores = {0.01: 2.1, 0.02: 2.0, 0.04: 2.2}
    records = searches(study, scores) + searches(study, scores, "both")
    assert [job[::3] for job in asked(due(study, records))] == [("fading", 5), ("both", 5), ("fading", 6), ("both", 6)]


@pytest.mark.parametrize(
    ("scores", "next_rate"),
    [
        ({0.01: 1.9, 0.02: 2.0, 0.04: 2.2}, 0.005),
        ({0.005: 1.8, 0.01: 1.9, 0.02: 2.0, 0.04: 2.2}, 0.0025),
        ({0.01: 2.4, 0.02: 2.3, 0.04: 2.2}, 0.08),
        ({0.01: 2.4, 0.02: 2.3, 0.04: 2.2, 0.08: 2.1}, 0.16),
    ],
)
def test_the_search_goes_on_beyond_an_end_that_is_best(study, scores, next_rate):
    records = searches(study, scores)
    assert [job.rate for job in due(study, records) if job.model == "fading"] == [next_rate]


@pytest.mark.parametrize(
    "scores",
    [
        {0.0025: 1.7, 0.005: 1.8, 0.01: 1.9, 0.02: 2.0, 0.04: 2.2},
        {0.01: 2.4, 0.02: 2.3, 0.04: 2.2, 0.08: 2.1, 0.16: 2.0},
        {0.01: 1.9, 0.005: 2.0, 0.02: 2.0, 0.04: 2.2},
    ],
)
def test_but_not_for_ever(study, scores):
    records = searches(study, scores)
    assert {job.stage for job in due(study, records) if job.model == "fading"} == {"final"}
    assert best_rate(study, "fading", records) == min(scores, key=scores.__getitem__)
    assert {job.rate for job in searched(study, "fading", records)} == set(scores)


def test_a_rate_that_failed_is_never_best(study):
    records = searches(study, {0.01: 2.1, 0.02: 2.0, 0.04: None})
    assert best_rate(study, "fading", records) == 0.02
    none = searches(study, dict.fromkeys((0.0025, 0.005, 0.01, 0.02, 0.04)))
    assert best_rate(study, "fading", none) is None
    assert not [job for job in due(study, none) if job.model == "fading"]


def test_where_all_final_runs_fail_the_best_rate_below_has_its_turn(study):
    records = searches(study, {0.01: 2.1, 0.02: 2.0, 0.04: 2.05})
    failed = [record(study, "fading", "final", 0.02, seed, failed="nan") for seed in study.seeds]
    assert best_rate(study, "fading", records + failed[:1]) == 0.02  # one seed alone is a result
    records += failed
    assert best_rate(study, "fading", records) == 0.01  # and not 0.04, which scored better
    assert [job for job in asked(due(study, records)) if job[0] == "fading"] == [
        ("fading", "final", 0.01, seed) for seed in study.seeds
    ]
    done = [record(study, "fading", "final", 0.01, seed) for seed in study.seeds]
    assert counted(study, records + done) == records[:3] + failed + done
    assert final_records(study, "fading", records + done) == done
    records += [record(study, "fading", "final", 0.01, seed, failed="nan") for seed in study.seeds]
    assert best_rate(study, "fading", records) is None
    assert not [job for job in due(study, records) if job.model == "fading"]
    assert len(final_records(study, "fading", records)) == 2 * len(study.seeds)


def test_a_single_rate_needs_no_search(tmp_path):
    given = STUDY.replace("[0.01, 0.02, 0.04]", "[0.03]")
    study = make_study(tmp_path, given.replace("search: {training.steps: 2}\n", ""))
    jobs = asked(due(study, []))
    assert jobs == [(m, "final", 0.03, s) for s in (5, 6) for m in ("fading", "both")]


def test_a_record_counts_while_the_recipe_is_the_same(study):
    job = Job(study, "fading", "search", 0.01, 5)
    [kept] = searches(study, {0.01: 2.0})
    assert job.is_of(json.loads(json.dumps(kept)))
    assert not job.is_of({**kept, "seed": 6})
    other = json.loads(json.dumps(kept))
    other["recipe"]["training"]["batch_size"] = 4
    assert not job.is_of(other)
    assert difference(job, other) == "training.batch_size: was 4, is now 2"
    logging = job.config.logging
    logging.every = 3  # decides no number
    assert Job(study, "fading", "search", 0.01, 5).is_of(kept)


def changed(kept, field, value):
    """A copy of a record whose recipe has another value in a field; None: not the field."""
    other = copy.deepcopy(kept)
    *above, name = field.split(".")
    place = other["recipe"]
    for part in above:
        place = place[int(part)] if part.isdecimal() else place[part]
    place[name] = value
    if value is None:
        del place[name]
    return other


def test_hours_of_runs_are_not_lost_for_what_decides_no_number(study):
    """A field that another version had or had not, where things lie, who may copy the texts."""
    job = Job(study, "fading", "search", 0.01, 5)
    [kept] = searches(study, {0.01: 2.0})
    for field, value in (
        ("training.compile", None),
        ("training.of_another_version", 3),
        ("guard", None),
        ("data.prepare.output", "elsewhere"),
        ("data.prepare.workers", 4),
        ("data.prepare.sources.0.license", "CC0-1.0"),
    ):
        assert job.is_of(changed(kept, field, value)), field
    for field, value in (
        ("data.prepare.sources.0.path", "other"),
        ("data.prepare.sources", []),
        ("model.hidden_size", None),
        ("model.mlp_bias", True),
        ("optimizer.betas", [0.9, 0.99]),
    ):
        assert not job.is_of(changed(kept, field, value)), field


def test_records_of_another_study_do_not_count(study):
    records = searches(study, {0.01: 2.1, 0.02: 2.0, 0.04: 2.2})
    records.insert(0, changed(records[1], "training.batch_size", 4))
    records.append(record(study, "fading", "final", 0.02, 6))
    records.append(record(study, "fading", "final", 0.01, 6))
    assert counted(study, records) == records[1:5]


def test_names_of_folders_differ(study):
    names = {job.name for job in due(study, [])}
    assert len(names) == 6
    assert "search-both-lr0.01-seed5" in names
