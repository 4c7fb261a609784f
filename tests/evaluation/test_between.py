import pytest

from hybridlm.errors import UserError
from hybridlm.evaluation.between import check_between, write_between

MARKERS = ("<!-- a -->", "<!-- /a -->")


def test_the_text_replaces_what_is_between_the_markers(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("# A\n\n<!-- a -->\nold\n<!-- /a -->\n\nend\n", encoding="utf-8")
    for _ in range(2):
        write_between(page, "new\ntext", *MARKERS)
        assert page.read_text(encoding="utf-8") == "# A\n\n<!-- a -->\nnew\ntext\n<!-- /a -->\n\nend\n"


@pytest.mark.parametrize("bad", ["no markers", "<!-- /a --> <!-- a -->", "<!-- a --><!-- a --><!-- /a -->"])
def test_without_one_of_each_the_page_stays(bad, tmp_path):
    page = tmp_path / "README.md"
    page.write_text(bad, encoding="utf-8")
    for refused in (lambda: write_between(page, "new", *MARKERS), lambda: check_between(page, *MARKERS)):
        with pytest.raises(UserError, match="put in one of each"):
            refused()
    assert page.read_text(encoding="utf-8") == bad


def test_a_page_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.md: cannot be read"):
        write_between(tmp_path / "nothing.md", "new", *MARKERS)
