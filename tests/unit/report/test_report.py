"""The report: one page, every figure, nothing from the network."""

import base64
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from recfuse.report import frontier
from recfuse.report.data import ReportData
from recfuse.report.page import render, write_report
from recfuse.report.questions import alarms, parts
from recfuse.report.sections import SECTIONS
from recfuse.report.sentences import WORDS, summary

ARM = {"estimate": [.05, None], "low": [.01, None], "high": [.09, None], "adjusted": [.01, None],
       "detectable": [.03, None]}
ANSWER = {"estimator": "NCIS", "formula": "Σ ρ_t r_t / Σ ρ_t", "estimate": [11.0, .02], "low": [10.0, .01],
          "high": [12.0, .03], "change": [.1, 0.0], "change_low": [.05, -.5], "change_high": [.15, .5],
          "effective_sample_size": [500.0, 500.0], "requests": 1_000, "users": 90, "mean_ratio": .98,
          "capped_share": .01, "cap": 10.0, "window": None, "bias_bound": [.3, .1], "allowance": [.2, 0.0],
          "feedback_share": None, "ranks_only": False, "refused": "", "warnings": []}
NONE = {"estimate": [None, None], "low": [None, None], "high": [None, None], "change": [None, None],
        "change_low": [None, None], "change_high": [None, None]}
REFUSED = {**ANSWER, **NONE, "estimator": "IS", "refused": "the mean ratio is .5, <too little>"}
RANKS = {**ANSWER, "estimator": "FQE", "change_low": [None, None], "change_high": [None, None], "ranks_only": True,
         "warnings": ["ranks policies, no more: logged feedback carries 3%", "the critics fail"], "feedback_share": .03}
QUESTION = {"words": "What would it bring?", "logged": [10.0, .02], "nobody": "", "trend": [], "disagreements": []}
BLOCKS = [
    {**QUESTION, "question": "one changed request", "unit": "request",
     "answers": [ANSWER, REFUSED, {**REFUSED, "estimator": "DR"}],
     "disagreements": [{"first": "NCIS", "second": "SN-DR", "behaviour": "like", "difference": .2, "low": .1,
                        "high": .3}]},
    {**QUESTION, "question": "a whole session", "unit": "session",
     "answers": [{**ANSWER, "estimator": "ratio of rates", "window": 3,
                  "warnings": ["states shift under this policy: +10.0%, outside of [+1.0%, +3.0%]"]}, RANKS],
     "trend": [{"window": 1, "change": [.02, 0], "change_low": [.01, 0], "change_high": [.03, 0]},
               {"window": 2, "change": [.1, 0], "change_low": [.05, 0], "change_high": [.15, 0]}]},
    {**QUESTION, "question": "a user over a time", "unit": "user", "answers": [], "nobody": "no log answers this"}]
TRUTHS = {"one changed request": {"change": [.04, .5], "error": [.005, .01]},
          "a whole session": {"change": [.2, 0.0], "error": [.01, .01]},
          "a user over a time": {"change": [.3, None], "error": [.01, None]}}
DATA = ReportData(
    account={"rows_in": 10, "kept": 8, "quarantined": {"mu: NaN": 2}},
    history=[{"phase": phase, "iteration": index, "loss": 1 / (index + 1), "explained_variance/watch_time": .1 * index}
             for phase in ("critics", "cloning", "stage_one", "stage_two") for index in range(3)],
    ab_test={"measures": ["watch_time", "like"], "level": .95, "arms": [
        {"name": "logged", "users": 100, "mean": [10.0, 1.0], "estimate": [0, 0], "low": [0, 0], "high": [0, 0]},
        {"name": "two<stage>", "reach": 0.0, "users": 100, "mean": [10.5, 1.0], **ARM}]},
    off_policy={"behaviours": ["watch_time", "like"], "blocks": BLOCKS, "truths": TRUTHS,
                "advice": ["9 more days would give an answer"]},
    weights={"parameters": ["click", "like"], "logged": [.6, .8], "groups": [
        {"feature": "all", "value": "", "requests": 9, "mean": [.5, .5]},
        {"feature": "scene", "value": "1", "requests": 5, "mean": [.7, -.7]}]},
    segments=[{"feature": "all", "value": "", "requests": 1_000, "change": [.1, 0.0], "low": [.05, -.5],
               "high": [.15, .5], "refused": ""},
              {"feature": "scene", "value": "0", "requests": 988, "change": [.2, 0.0], "low": [.1, -.5],
               "high": [.3, .5], "refused": ""},
              {"feature": "scene", "value": "<1>", "requests": 12, "change": [None, None], "low": [None, None],
               "high": [None, None], "refused": "too few"}],
    floors={"like": 0.0},
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


@pytest.fixture(scope="module")
def text():
    return render(DATA)


def test_the_page_holds_every_figure_and_needs_no_network(text):
    page = Page(text)
    assert page.sections == list(page.images) == [section.name for section in SECTIONS]
    assert all(link.startswith(("#", "data:image/svg+xml;base64,")) for link in page.links)


def test_figures_are_images_with_axes_and_units(text):
    page = Page(text)
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
        side = next(one for one in panels if one.get_shared_y_axes().joined(one, axes) or one is axes)
        for label, ticks, shared in (
                (axes.get_xlabel(), axes.get_xticklabels(), figure.get_supxlabel()),
                (side.get_ylabel(), side.get_yticklabels(), figure.get_supylabel())):
            categories = any(re.search(r"[A-Za-z]{2}", tick.get_text()) for tick in ticks)
            assert label or shared or categories
            assert categories or re.search(r"\(.+\)|AUC|passes|requests|users|scene|task|observed|measure",
                                           label or shared), label or shared


def test_chapters_have_an_order(text):
    titles = re.findall(r'<h2 class="chapter">(.*?)</h2>', text)
    assert titles == ["What it brings", "Who gains", "Can you believe it", "For engineers"]
    assert text.index('id="verdict"') < text.index("What was found") < text.index(titles[0])


def test_groups_that_gain_and_groups_that_nobody_knows():
    assert frontier.segment_rows(DATA) == (["group", "requests", "watch_time", "like"], [
        ["all", "1,000", "+10.0% [+5.0, +15.0]", "+0.0% [-50.0, +50.0]"],
        ["scene 0", "988", "+20.0% [+10.0, +30.0]", "+0.0% [-50.0, +50.0]"], ["scene <1>", "12", "no answer: too few"]])
    assert frontier.segments(ReportData(segments=DATA.segments[::2])) is None


def test_the_page_opens_with_what_was_found(text):
    """Effects of DATA: watch time 5% [1, 9], like not known; NCIS +10%; of 10 ratios .5 over .49 is near 1."""
    assert summary(DATA) == [
        "In the simulator two<stage>, which does not explore, brought +5.0% [1.0, 9.0] watch_time per user against "
        "logged. Sure among the other measures: none.",
        "From the held-out log, “one changed request” brings +10.0% [+5.0, +15.0] watch_time (NCIS); the truth is "
        "+4.0%.",
        "From the held-out log, “a whole session” brings +10.0% [+5.0, +15.0] watch_time (ratio of rates); the truth "
        "is +20.0%.",
        "On “a user over a time”: no log answers this.",
        "9 more days would give an answer.",
        "The simulator is within 10% of the log in 1 of 10 measures that are not 0.",
        "The scorer's AUC over all scenes on the last day: click 0.700, long_view 0.700."]
    assert summary(ReportData()) == []
    against_itself = {**DATA.ab_test, "aa": {"runs": 200, "false": [.03, .06], "family": .04}}
    assert summary(ReportData(ab_test=against_itself))[0] == (
        "Tested 200 times against itself, logged seemed different in 4.5% of the intervals; 5% are expected.")
    assert text.index("What was found") < text.index('<section id="ab_test">')
    assert all(f"<dt>{word}</dt>" in text for word in WORDS)


def test_what_disagrees_and_what_shifts_stands_in_the_opening(text):
    """The truths 4 ± .5 and 20 ± 1 meet [5, 15] nowhere; 50 ± 1 and 0 meet [−50, 50]."""
    found = alarms(DATA)
    assert found == [
        "“one changed request”: NCIS and SN-DR disagree on like by +20.0% [+10.0, +30.0]; at least one of them is "
        "wrong.",
        "“a whole session”: states shift under this policy: +10.0%, outside of [+1.0%, +3.0%].",
        "2 of 4 intervals leave out the simulated truth: NCIS on watch_time; ratio of rates on watch_time."]
    assert all(text.index(sentence) < text.index("<li>In the simulator") for sentence in found)
    assert alarms(ReportData()) == []


def test_each_question_has_its_answers_beside_the_truth():
    request, session, user = (part.table[1] for part in parts(DATA))
    assert request == [
        ["the log itself, per request", "10", "0.02"],
        ["the truth, by simulation", "+4.0% ± 0.5", "+50.0% ± 1.0"],
        ["NCIS", "+10.0% [+5.0, +15.0] ≠ truth", "+0.0% [-50.0, +50.0]"],
        ["IS, DR", "no answer: the mean ratio is .5, <too little>"]]
    assert session[2:] == [
        ["ratio of rates (window 3)", "+10.0% [+5.0, +15.0] ≠ truth", "+0.0% [-50.0, +50.0]"],
        ["FQE (ranks policies; assumes that the state is Markov)", "+10.0%", "+0.0%"]]
    assert user[1:] == [["the truth, by simulation", "+30.0% ± 1.0", "unknown"],
                        ["every estimator", "no answer: no log answers this"]]
    assert parts(DATA)[1].notes == [
        "FQE: the critics fail.",
        "watch_time by the number of requests that are weighed together: 1: +2.0%, 2: +10.0%."]


def test_user_text_is_escaped(text):
    assert "two&lt;stage&gt;" in text
    assert "two<stage>" not in text


def test_what_is_missing_is_said_with_the_job_that_measures_it():
    text = render(ReportData())
    page = Page(text)
    assert page.images == {}
    assert text.count("Not measured in this run") == len(SECTIONS)
    assert "<code>recfuse ab-test</code> measures it" in text


def test_a_log_that_answers_nothing_says_so():
    block = {**BLOCKS[0], "answers": [REFUSED], "disagreements": []}
    data = ReportData(off_policy={"behaviours": ["watch_time", "like"], "blocks": [block], "advice": []})
    assert summary(data) == ["The held-out log does not answer “one changed request”."]
    svg = base64.b64decode(Page(render(data)).images["off_policy"].split(",", 1)[1]).decode()
    assert "the log has too little support" in svg


def test_the_same_data_gives_the_same_page(text):
    assert render(DATA) == text


def test_the_file_is_written_whole(tmp_path):
    path = write_report(tmp_path / "deep" / "report.html", DATA)
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_refused_estimators_are_in_the_table_with_their_reason(text):
    assert "the mean ratio is .5, &lt;too little&gt;" in text


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_every_section_has_a_sentence(section):
    assert section.sentence.endswith(".")
    assert section.job.startswith("recfuse ")
