from made_up_studies import make_study, record, with_tests
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
    assert lines[0] == "| model | parameters | lr | seeds | validation | test, 4 | test, 8 | tokens/s | state, bytes |"
    half = "1.6000 ± 0.1000 | 1.7000 ± 0.1000 | 1.6000 ± 0.1000"
    assert lines[2] == f"| `fading` | 1,000 | 0.02 | 2 | {half} | 10 | 64 |"
    assert "| 1.1000 ± 0.1000 | 1.2000 ± 0.1000 |" in lines[3]


def test_the_page(tmp_path):
    study = make_study(tmp_path)
    made = records_of(study)
    made.append(record(study, "both", "search", 0.08, 5, failed="the loss or a gradient was not finite"))
    page = write_page(study, made, tmp_path / "study.md", tmp_path / "study.png")
    text = page.read_text()
    assert "![bits per byte by context](study.png)" in text
    with Image.open(tmp_path / "study.png") as picture:
        assert picture.size[0] > 400
    assert "| `both` | 1.6000 | **1.5000** | 1.7500 |" in text
    assert "- search both, lr 0.08, seed 5: the loss or a gradient was not finite." in text
    assert "Validation: 500 bytes" in text
    assert "Test: held.txt; in every context the same 321 bytes" in text
    assert "hybridlm pretrain final-both-lr0.02-seed5" in text


def test_what_is_not_done_is_left_open(tmp_path):
    study = make_study(tmp_path)
    page = write_page(study, records_of(study)[:2], tmp_path / "study.md", tmp_path / "study.png")
    assert "| `fading` | 2.1000 | 2.0000 |  |" in page.read_text()
    assert not (tmp_path / "study.png").exists()
