"""The page in a browser: headless Chromium, where there is one."""

import re
import subprocess

import matplotlib.pyplot as plt
import pytest
from inspector_pages import NASTY, Page, by_words

from hybridlm.evaluation.inspector.alignment import align
from hybridlm.evaluation.inspector.browser import browser, screenshot
from hybridlm.evaluation.inspector.figures import unit_figures
from hybridlm.evaluation.inspector.page import render_page
from hybridlm.evaluation.inspector.recording import record

CHROMIUM = browser()
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on the PATH: the inspector's page was not tried in a browser"
)


@pytest.fixture(scope="module")
def inspected(build):
    model = build("bmru+cmru rglru acmru fqbmru", hidden_size=16, threshold_init=0.3).double()
    spans = by_words(NASTY)
    recording = record(model, spans.ids)
    page = render_page("book", [], recording, spans, unit_figures(recording), align(recording, spans))
    return recording, spans, page


class Dom(Page):
    """What the browser made of a page: tokens as (text, classes), and text by id."""

    def __init__(self, text):
        self.tokens, self.ids, self.squares, self.rows = [], {}, [], []
        self.inside = []
        super().__init__(text)

    def handle_starttag(self, tag, attrs):
        super().handle_starttag(tag, attrs)
        attributes = dict(attrs)
        self.inside.append((tag, attributes))
        classes = set((attributes.get("class") or "").split())
        if "data-t" in attributes:
            self.tokens.append(["", classes])
        elif tag == "a" and "title" in attributes:
            self.squares.append((attributes["title"], classes))
        elif tag == "tr" and re.fullmatch(r"row\d+", attributes.get("id", "")):
            self.rows.append((int(attributes["id"][3:]), classes))

    def handle_endtag(self, tag):
        super().handle_endtag(tag)
        while self.inside and self.inside.pop()[0] != tag:
            pass

    def handle_data(self, data):
        super().handle_data(data)
        if self.inside and "data-t" in self.inside[-1][1]:
            self.tokens[-1][0] += data
        for _, attributes in self.inside:
            if "id" in attributes:
                self.ids[attributes["id"]] = self.ids.get(attributes["id"], "") + data

    def having(self, letter):
        return [token for token, (_, classes) in enumerate(self.tokens) if letter in classes]


@pytest.fixture
def browse(inspected, tmp_path):
    """browse(fragment, script) -> the page's Dom once it is drawn, and once `script`, if given, has acted on it."""

    def dom(fragment="", script=None):
        text = inspected[2]
        if script is not None:
            text = re.sub("script-src '[^']*'", "script-src 'unsafe-inline'", text)
            text = text.replace("</body>", f"<script>{script}</script></body>")
        (tmp_path / "page.html").write_text(text, encoding="utf-8")
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1300,900", "--virtual-time-budget=2000"]
        url = (tmp_path / "page.html").as_uri() + fragment
        done = subprocess.run([*command, "--dump-dom", url], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return Dom(done.stdout)

    return dom


def test_the_text_is_coloured_by_the_unit_of_the_fragment(inspected, browse):
    recording, spans, _ = inspected
    for name in ("0.3", "2.5"):
        dom, unit = browse(f"#unit={name}&token=9"), recording.names.index(name)
        signs, writes = recording.signs()[unit], recording.written()[unit]
        assert "".join(text for text, _ in dom.tokens) == NASTY  # literally, scripts and all
        assert [text for text, _ in dom.tokens] == [spans.piece(token) for token in range(len(spans.ids))]
        for letter, wanted in (("p", signs > 0), ("n", signs < 0), ("z", signs == 0), ("w", writes)):
            assert dom.having(letter) == wanted.nonzero()[0].tolist()
        assert dom.having("t") == [9]
        assert f"Unit {name} (" in dom.ids["status"]
        assert f"Token 9, {spans.piece(9)!r}".replace("'", '"') in dom.ids["status"]
        (chosen,) = [row for row, classes in dom.rows if "u" in classes]
        assert chosen == unit
        holds = unit_figures(recording)[unit].holds
        lengths = ["1", "2–3", "4–7", "8–15", "16–31", "32–63", "64–127"]
        assert dom.ids["holds"] == "".join(f"{a}{b}" for a, b in zip(lengths, holds, strict=False))


def test_all_units_at_the_token(inspected, browse):
    recording, _, _ = inspected
    dom = browse("#unit=0.17&token=20")
    assert [name for name, _ in dom.squares] == recording.names
    signs, writes = recording.signs()[:, 20], recording.written()[:, 20]
    for (_, classes), sign, write in zip(dom.squares, signs, writes, strict=True):
        assert classes - {"u"} == {{1: "p", -1: "n", 0: "z"}[int(sign)]} | ({"w"} if write else set())
    assert [name for name, classes in dom.squares if "u" in classes] == ["0.17"]


def test_clicks_and_keys(inspected, browse):
    last = inspected[0].tokens - 1
    script = """
        const press = (id, key, more) => at(id).dispatchEvent(new KeyboardEvent("keydown", {key, ...more}));
        const type = (id, value) => { at(id).value = value; at(id).dispatchEvent(new Event("change")); };
        const seen = [at("status").textContent];
        const note = () => seen.push(`${location.hash} ${document.querySelector("#text .t").dataset.t} ` +
          `${document.querySelector(".grid .u").title} ${document.querySelector("#units .u").id}`);
        spans[7].click(); note();
        press("text", "ArrowRight"); note();
        press("picture", "ArrowDown"); note();
        press("picture", "End"); note();
        press("picture", "ArrowUp", {shiftKey: true}); note();
        press("picture", "ArrowLeft", {shiftKey: true}); note();
        at("row40").click(); note();
        type("unit", "2.7"); note();
        type("token", "12"); note();
        type("unit", "9.9"); seen.push(at("status").textContent);
        document.body.append(make("p", {id: "log", textContent: seen.join("|")}));
        document.querySelector("#at-token a[title='0.17']").click();
    """
    dom = browse("#unit=0.2", script)
    first, *seen = dom.ids["log"].split("|")
    assert [name for name, classes in dom.squares if "u" in classes] == ["0.17"]  # by the fragment of the link
    wanted = [("0.2", 7), ("0.2", 8), ("0.3", 8), ("0.3", last), ("0.0", last), ("0.0", 0), ("2.8", 0), ("2.7", 0)]
    assert first.startswith("Unit 0.2 (")
    assert seen == [
        f"#unit={name}&token={token} {token} {name} row{inspected[0].names.index(name)}"
        for name, token in [*wanted, ("2.7", 12)]
    ] + ["There is no unit 9.9: 0.0 is one."]


def test_the_table_is_sorted(inspected, browse):
    shares = [each.write_share for each in unit_figures(inspected[0])]
    dom = browse("", 'sortBy(2); at("status").textContent = sorted.join(" "); sortBy(2);')
    falling = [int(unit) for unit in dom.ids["status"].split()]
    assert falling == sorted(range(64), key=lambda unit: -shares[unit])
    assert [row for row, _ in dom.rows] == sorted(range(64), key=lambda unit: shares[unit])


def test_the_picture_has_the_colours_of_the_states(inspected, browse):
    """One pixel in the middle of each token's part, in every row: zoomed in, and without the marks of writes."""
    recording = inspected[0]
    script = """
        at("show").value = "states";
        at("view").style.maxHeight = "none";
        move(10, 24);
        paintChoice = () => {};
        paint();
        const seen = rows.map((unit) => Array.from({length: 30}, (_, i) => {
          const [r, , b] = context.getImageData(MARGIN + i * 24 + 12, tops[unit], 1, 1).data;
          return r > b ? "p" : r < b ? "n" : "z";
        }).join(""));
        at("status").textContent = seen.join(" ");
    """
    letters = {1: "p", -1: "n", 0: "z"}
    wanted = ["".join(letters[int(sign)] for sign in row[10:40]) for row in recording.signs()]
    assert browse("", script).ids["status"].split() == wanted


def test_counting_bits(inspected, browse):
    recording = inspected[0]
    script = """
        at("status").textContent = [[0, 1], [3, 8], [5, 21], [0, TOKENS], [16, 24], [17, 60]]
          .map(([from, to]) => count(writes, 5, from, to)).join(" ");
    """
    row = recording.written()[5]
    wanted = [row[a:b].sum() for a, b in [(0, 1), (3, 8), (5, 21), (0, len(row)), (16, 24), (17, 60)]]
    assert [int(number) for number in browse("", script).ids["status"].split()] == wanted


def test_picture_of_a_page(inspected, tmp_path):
    (tmp_path / "page.html").write_text(inspected[2], encoding="utf-8")
    screenshot(tmp_path / "page.html", tmp_path / "page.png", width=400, height=300)
    image = plt.imread(tmp_path / "page.png")
    assert image.shape[:2] == (300, 400)
    assert image[..., :3].std() > 0.05  # not a blank page
