from made_up_studies import STUDY, make_study, record, with_tests
from PIL import Image

from hybridlm.evaluation.comparison.page import summary, write_page


def records_of(study):
    made = []
    for model, shift in (("fading", 0.0), ("both", -0.5)):
        for rate, bits in ((0.01, 2.1), (0.02, 2.0), (0.04, 2.25)):
            made.append(record(study, model, "search", rate, 5, bits + shift))
        for seed, bits in ((5, 1.5), (6, 1.7)):
            more = with_tests(bits + shift + 0.1, bits + shift)
            made.append(record(study, model, "final", 0.02, seed, bits + shift, **more))
    return made


def test_means_and_spreads(tmp_path):
    study = make_study(tmp_path)
    lines = summary(study, records_of(study)).splitlines()
    assert lines[0] == (
        "| model | parameters | lr | seeds | validation | test, 4 | test, 8 | training, tokens/s "
        "| generation, tokens/s | state, bytes |"
    )
    half = "1.6000 ± 0.1000 | 1.7000 ± 0.1000 | 1.6000 ± 0.1000"
    assert lines[2] == f"| `fading` | 1,000 | 0.02 | 2 | {half} | 10 | 123 | 64 |"
    assert "| 1.1000 ± 0.1000 | 1.2000 ± 0.1000 |" in lines[3]


def test_the_page(tmp_path):
    study = make_study(tmp_path)
    made = records_of(study)
    made[7] = record(study, "both", "search", 0.04, 5, failed="the loss or a gradient was not finite")
    page = write_page(study, made, tmp_path / "study.md", tmp_path / "study.png")
    text = page.read_text()
    assert "![bits per byte by context](study.png)" in text
    with Image.open(tmp_path / "study.png") as picture:
        assert picture.size[0] > 400
    assert "| `both` | 1.6000 | **1.5000** | failed |" in text
    assert "- search both, lr 0.04, seed 5: the loss or a gradient was not finite." in text
    assert "Validation: 500 bytes" in text
    assert "Test: held.txt; in every context the same 321 bytes" in text
    assert "hybridlm pretrain final-both-lr0.02-seed5" in text
    assert "| model | 1 to 4 | 5 to 8 |" in text
    assert "| `fading` | 1.8000 | 1.7000 |" in text


def test_the_page_of_a_study_without_a_search(tmp_path):
    study = make_study(
        tmp_path, STUDY.replace("[0.01, 0.02, 0.04]", "[0.02]").replace("search: {training.steps: 2}", "")
    )
    made = [record(study, model, "final", 0.02, 5, 1.5, **with_tests(1.6, 1.5)) for model in study.models]
    text = write_page(study, made, tmp_path / "study.md", None).read_text()
    assert "for each; all have the learning rate 0.02. The runs" in text
    assert "search" not in text
    assert "| `both` | 1,000 | 0.02 | 1 | 1.5000 |" in text


def test_what_would_flatter_is_said(tmp_path):
    """Seeds that failed, a best rate at the end of what was tried, data that was not the same."""
    study = make_study(tmp_path)
    made = records_of(study)
    for rate, bits in ((0.005, 1.4), (0.0025, 1.3)):
        made.append(record(study, "both", "search", rate, 5, bits))
    made[5]["bits_per_byte"] = 1.45  # of "both", at the lowest of its rates
    made[2]["bits_per_byte"] = 1.9  # of "fading", at the highest of its rates
    made += [record(study, "fading", "search", rate, 5, 1.9 - rate) for rate in (0.08, 0.16)]
    made.append(record(study, "both", "final", 0.0025, 5, 1.2, data="a" * 64))
    made.append(record(study, "both", "final", 0.0025, 6, failed="the loss jumped at step 2 of 3"))
    made.append(record(study, "fading", "final", 0.16, 5, failed="the loss jumped at step 1 of 3"))
    text = write_page(study, made, tmp_path / "study.md", None).read_text()
    assert "| `both` | 1,000 | 0.0025 | 1, 1 failed | 1.2000 |" in text
    assert "| `fading` |  |  | 0, 1 failed |  |" in text
    assert "beyond the best one, the lowest or highest that was tried: fading, both." in text
    assert "(`training.steps=2`)" in text
    assert "The runs that count have `training.steps=3`." in text
    assert f"Fingerprint of the data: {'a' * 16}." in text
    assert "do not compare" not in text
    next(one for one in made if one["rate"] == 0.0025 and one["stage"] == "search")["data"] = "b" * 64
    text = write_page(study, made, tmp_path / "study.md", None).read_text()
    assert f"({'b' * 16} 1, {'a' * 16} 1): they do not compare" in text


def test_what_is_not_done_is_left_open(tmp_path):
    study = make_study(tmp_path)
    page = write_page(study, records_of(study)[:2], tmp_path / "study.md", tmp_path / "study.png")
    assert "| `fading` | 2.1000 | 2.0000 |  |" in page.read_text()
    assert not (tmp_path / "study.png").exists()
