"""The report: one page, every figure, nothing from the network."""

import base64
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from recfuse.report.data import ReportData
from recfuse.report.page import render, write_report
from recfuse.report.sections import SECTIONS
from recfuse.report.sentences import WORDS, summary

ARM = {"estimate": [.05, None], "low": [.01, None], "high": [.09, None], "adjusted": [.01, None],
       "detectable": [.03, None]}
ESTIMATE = {"behaviours": ["watch_time", "like"], "estimate": [11.0, .02], "low": [10.0, .01], "high": [12.0, .03],
            "logged": [10.0, .02], "effective_sample_size": [500.0, 500.0], "requests": 1_000, "users": 90,
            "mean_ratio": .98, "per": "request", "estimator": "NCIS", "refused": ""}
NONE = {**ESTIMATE, "estimator": "PDIS", "per": "session", "refused": "after 3 requests, <too few>",
        "estimate": [None, None], "low": [None, None], "high": [None, None]}
DATA = ReportData(
    account={"rows_in": 10, "kept": 8, "quarantined": {"mu: NaN": 2}},
    history=[{"phase": phase, "iteration": index, "loss": 1 / (index + 1), "explained_variance/watch_time": .1 * index}
             for phase in ("critics", "cloning", "stage_one", "stage_two") for index in range(3)],
    ab_test={"measures": ["watch_time", "like"], "level": .95, "arms": [
        {"name": "logged", "users": 100, "mean": [10.0, 1.0], "estimate": [0, 0], "low": [0, 0], "high": [0, 0]},
        {"name": "two<stage>", "users": 100, "mean": [10.5, 1.0], **ARM}]},
    off_policy={**ESTIMATE, "estimators": [ESTIMATE, NONE]},
    weights={"parameters": ["click", "like"], "logged": [.6, .8], "groups": [
        {"feature": "all", "value": "", "requests": 9, "mean": [.5, .5]},
        {"feature": "scene", "value": "1", "requests": 5, "mean": [.7, -.7]}]},
    scorer=[{"scene": scene, "task": task, "rows": 10, "positives": 3, "auc": .7, "gauc": None,
             "calibration_error": .01, "predicted_over_observed": 1.05}
            for scene in ("0", "all") for task in ("click", "long_view")],
    response={"auc": {"click": .7, "hate": None}, "positives": {"click": 9, "hate": 0},
              "interval": {"click": [.6, .8], "hate": [None, None]}},
    calibration=[["1", "click", .5, .49], ["1", "hate", 0.0, 0.0],
                 *(["1", f"watch_time p{level}", level / 9, level / 10] for level in range(10, 100, 10))],
    serving={"latency_ms": [1.0, 2.0, 3.0, 9.0], "endpoint": "POST /v1/recommend"},
    subject={"policy": "fusion-abc"},
)


class Page(HTMLParser):
    """Ids of sections, sources of images and links, and whether every tag was closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sections: list[str] = []
        self.images: dict[str, str] = {}
        self.links: list[str] = []
        self.feed(text)
        assert not self.open, f"unclosed: {self.open}"

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "section":
            self.sections.append(values["id"])
        if tag == "img":
            self.images[self.sections[-1]] = values["src"]
            assert values["alt"]
        self.links += [value for name, value in attributes if name in ("href", "src")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_holds_every_figure_and_needs_no_network():
    page = Page(render(DATA))
    assert page.sections == list(page.images) == [section.name for section in SECTIONS]
    assert all(link.startswith(("#", "data:image/svg+xml;base64,")) for link in page.links)


def test_figures_are_images_with_axes_and_units():
    page = Page(render(DATA))
    for name, source in page.images.items():
        svg = base64.b64decode(source.split(",", 1)[1])
        root = ElementTree.fromstring(svg)
        assert root.tag.endswith("svg"), name
        comments = re.findall(rb"<!-- (.*?) -->", svg)
        assert any(len(comment) > 3 for comment in comments), f"{name}: its axes are labelled"


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_every_axis_says_what_it_measures(section):
    """A label on either axis, of the panel or of the whole figure, or named categories; a unit in brackets wherever it
    is no count and no ratio that the label names."""
    figure = section.draw(DATA)
    figure.canvas.draw()
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    assert panels
    for axes in panels:
        side = panels[0] if panels[0].get_shared_y_axes().joined(panels[0], axes) else axes
        for label, ticks, shared in (
                (axes.get_xlabel(), axes.get_xticklabels(), figure.get_supxlabel()),
                (side.get_ylabel(), side.get_yticklabels(), figure.get_supylabel())):
            categories = any(re.search(r"[A-Za-z]{2}", tick.get_text()) for tick in ticks)
            assert label or shared or categories
            assert categories or re.search(r"\(.+\)|AUC|passes|requests|users|scene|task|observed|measure",
                                           label or shared), label or shared


def test_the_page_opens_with_what_was_found():
    """Effects of DATA: watch time 5% [1, 9], like not known; NCIS 11 over 10; of 10 ratios .5 over .49 is near 1."""
    assert summary(DATA) == [
        "In the simulator two<stage> brought +5.0% [1.0, 9.0] watch_time per user against logged; sure among the other "
        "measures: none.",
        "From the held-out log the policy is estimated at +10.0% [0.0, 20.0] watch_time per request (NCIS), states as "
        "they were logged.",
        "The simulator is within 10% of the log in 1 of 10 measures that are not 0.",
        "The scorer's AUC over all scenes on the last day: click 0.700, long_view 0.700."]
    assert summary(ReportData()) == []
    against_itself = {**DATA.ab_test, "aa": {"runs": 200, "false": [.03, .06], "family": .04}}
    assert summary(ReportData(ab_test=against_itself))[0] == (
        "Tested 200 times against itself, logged seemed different in 4.5% of the intervals; 5% are expected.")
    text = render(DATA)
    assert text.index("What was found") < text.index('<section id="ab_test">')
    assert all(f"<dt>{word}</dt>" in text for word in WORDS)


def test_user_text_is_escaped():
    text = render(DATA)
    assert "two&lt;stage&gt;" in text
    assert "two<stage>" not in text


def test_what_is_missing_is_said_with_the_job_that_measures_it():
    text = render(ReportData())
    page = Page(text)
    assert page.images == {}
    assert text.count("Not measured in this run") == len(SECTIONS)
    assert "<code>jobs/ab_test.py</code> measures it" in text


def test_a_refused_estimate_shows_its_reason():
    refused = {**DATA.off_policy, "refused": "effective sample size 3.0 is below 100", "estimate": [None, None],
               "low": [None, None], "high": [None, None]}
    page = Page(render(ReportData(off_policy=refused)))
    svg = base64.b64decode(page.images["off_policy"].split(",", 1)[1]).decode()
    assert "effective sample size 3.0 is below 100" in re.sub(r"\s+", " ", svg)


def test_the_same_data_gives_the_same_page():
    assert render(DATA) == render(DATA)


def test_the_file_is_written_whole(tmp_path):
    path = write_report(tmp_path / "deep" / "report.html", DATA)
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_refused_estimators_are_in_the_table_with_their_reason():
    assert "after 3 requests, &lt;too few&gt;" in render(DATA)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_every_section_has_a_sentence(section):
    assert section.sentence.endswith(".")
    assert section.job.startswith("jobs/")
