"""The report: whole in itself, says what the certificate says, and a browser has nothing to add."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from docs.make_screenshots import find_browser, screenshot
from tests.artifact_edits import change_onnx, scale_weight
from tests.verify.test_divergence import DEEP
from torchport.verify.report.charts import Series, dots, growth, heat_map
from torchport.verify.report.page import MOST_ROWS, worst_cases
from torchport.verify.verifying import verify

VOID = {"meta", "link", "img", "br"}


class Outline(HTMLParser):
    """Holds every end tag against its start, and collects what a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.open, self.fetched, self.tags = [], [], set()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def page(built):
    """The report of a recipe with these changes, and the certificate."""

    def write(*changes, change=None):
        recipe, folder = built(*changes)
        if change is not None:
            change_onnx(folder, change)
        certificate = verify(recipe, folder).certificate
        return folder.report, certificate

    return write


def test_the_page_is_whole_in_itself(page):
    path, certificate = page(DEEP)
    text = path.read_text()
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    assert "script" not in outline.tags
    assert all(link.startswith("data:") for link in outline.fetched)
    assert "@import" not in text
    assert "url(" not in text
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(svg)
    assert '<span class="verdict good">passed</span>' in text
    cases = {row["case"] for result in certificate["results"] for row in result["comparisons"]}
    assert all(f">{case}<" in text for case in cases)
    assert all(f"{backend} on cpu" in text for backend in ("onnxruntime", "torchscript", "pt2"))
    assert "second.norm (LayerNorm; LayerNormalization)" in text
    assert all(f"<td>{by} on cpu</td>" in text for by in ("eager float32", "onnxruntime", "torchscript"))


def test_a_failure_stands_first(page):
    path, certificate = page(DEEP, change=scale_weight("second.inner.weight", 1.001))
    text = path.read_text()
    assert '<span class="verdict bad">did not pass</span>' in text
    assert "the first module that differs is second.inner" in text
    assert text.index("What failed") < text.index("Graph main")
    assert 'class="over"' in text


def test_what_a_model_says_of_itself_is_text(page):
    path, _ = page(
        (
            "def requests(self):",
            'def describe_input(self, graph, row, assets):\n        return "<b>&"\n\n    def requests(self):',
        )
    )
    text = path.read_text()
    assert "<pre>&lt;b&gt;&amp;</pre>" in text
    assert "<b>" not in text


def test_a_word_that_a_recipe_cannot_find_costs_no_certificate(page):
    failing = "def describe_input(self, graph, row, assets):\n        raise KeyError('tokens')\n\n    "
    path, certificate = page(("def requests(self):", failing + "def requests(self):"))
    assert certificate["passed"]
    assert "KeyError" in path.read_text()


def test_charts_hold_what_is_not_finite():
    for svg in (
        dots([Series("a", [("x", float("inf")), ("y", 0.0)]), Series("b", [("x", 1e-9), ("y", 3.0)])]),
        growth(["one"], [Series("a", [("one", float("inf"))]), Series("b", [("one", 1e-7)])]),
        heat_map(["n"], ["1", "2"], {("n", "1"): float("inf"), ("n", "2"): 0.25}),
    ):
        root = ElementTree.fromstring(svg)
        numbers = [float(e.get(k)) for e in root.iter() for k in ("cx", "cy", "x", "y") if e.get(k)]
        assert all(-1 <= number <= 5000 for number in numbers)
    assert growth(["one"], [Series("a", [("one", 0.0)])]) == ""


def test_a_label_that_is_too_long_keeps_its_ends():
    name = "sequence_length=1, " * 4 + "the end"
    chart = dots([Series("a", [(name, 0.1)])])
    (shown,) = (e.text for e in ElementTree.fromstring(chart).iter("text") if "…" in e.text)
    assert shown.startswith("sequence_length=1")
    assert shown.endswith("the end")
    assert f"<title>{name}</title>" in chart


def test_of_many_cases_those_with_the_greatest_errors_are_drawn_in_their_order():
    errors = {f"case {n}": n / 100 for n in range(MOST_ROWS + 5)}
    assert worst_cases([errors, {"case 0": 5.0}]) == [
        "case 0",
        *(f"case {n}" for n in range(6, MOST_ROWS + 5)),
    ]


@pytest.mark.skipif(find_browser() is None, reason="no Chromium here: apt-get install chromium")
def test_a_browser_draws_it_and_its_console_is_silent(page, tmp_path):
    path, _ = page(DEEP)
    browser, picture = find_browser(), tmp_path / "page.png"
    assert screenshot(path, picture, browser) == []
    assert picture.stat().st_size > 20_000
    loud = tmp_path / "loud.html"
    loud.write_text("<script>console.error('heard')</script>")
    assert "heard" in screenshot(loud, picture, browser)[0]
