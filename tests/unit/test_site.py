"""The documentation's machinery: a reference that has all there is, links that lead somewhere, pictures as drawn.

That the whole builds without a warning is seen by `make docs`, which needs what others do not.
"""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from docs.pictures import request
from docs.pictures.__main__ import PICTURES
from docs.site import reference, serving
from docs.site.check import complaints
from docs.site.markdown import linked, spaced
from recfuse import cli
from recfuse.learning import registry
from recfuse.serving.endpoints import ENDPOINTS
from recfuse.serving.meters import METERS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return reference.pages()


def test_every_command_has_a_page_with_its_options(made):
    for name in cli.COMMANDS:
        page = made[f"reference/commands/{name}.md"]
        options = re.findall(r"^\| `--[\w.-]+` \| .+ \| .+ \| .* \|$", page, re.MULTILINE)
        assert len(options) >= 3, name
        assert f"](commands/{name}.md)" in made["reference/commands.md"]


def test_what_a_command_asks_for_is_said_to_be_required(made):
    assert "| `--weights` | required |" in made["reference/commands/explore.md"]
    assert "| `--learning.replay.floor` | `0.0` |" in made["reference/commands/train.md"]


def test_every_algorithm_and_every_meter_is_there(made):
    assert all(f"## {name}\n" in made["reference/algorithms.md"] for name in registry.names())
    assert all(f"`{name}`" in made["reference/metrics.md"] for name in METERS)


def test_every_documented_endpoint_has_a_real_answer():
    answered = serving.recorded()
    for endpoint in ENDPOINTS:
        if endpoint.documented:
            status, body = answered.answers[endpoint.name]
            assert status == endpoint.status, endpoint.name
            if endpoint.answer is not None:
                endpoint.answer.model_validate(body)
    status, body = answered.refusal
    assert (status, body["error"]["field"]) == (422, "top_n")


def test_a_field_says_its_type_and_types_of_ours_are_explained(made):
    page = made["reference/http.md"]
    assert "| `candidates` | OpenCandidates | required |" in page
    assert "| `predictions` | map to list of number |  |" in page
    assert "| `explore` | boolean |  |" in page
    named = set(re.findall(r"^\| `\w+` \| (?:list of )?([A-Z]\w+)", page, re.MULTILINE))
    assert named
    assert all(f"### {name}\n" in page for name in named), named


def test_a_bundle_of_each_kind_is_shown(made):
    for kind in ("fusion", "scenes"):
        assert f"## Kind `{kind}`" in made["reference/bundles.md"]


@pytest.mark.parametrize(("source", "page", "link", "becomes"), [
    ("README.md", "index.md", "[a](docs/maths.md#1-x)", "[a](maths.md#1-x)"),
    ("README.md", "index.md", "![a](docs/pictures/loop.svg)", "![a](pictures/loop.svg)"),
    ("README.md", "index.md", "[a](docs/first_policy.ipynb)", "[a](first_policy.md)"),
    ("docs/design.md", "design.md", "[a](../CONTRIBUTING.md)", "[a](contributing.md)"),
    ("docs/results/demo.md", "results/demo.md", "[a](../decisions.md#x)", "[a](../decisions.md#x)"),
    ("docs/results/demo.md", "results/demo.md", "[a](../../jobs/demo.py)", "`jobs/demo.py`"),
    ("docs/design.md", "design.md", "[a](https://ray.io) [b](#here)", "[a](https://ray.io) [b](#here)"),
])
def test_links_lead_where_the_builder_puts_their_targets(source, page, link, becomes):
    assert linked(link, source, page) == becomes


def test_lists_are_spaced_and_code_is_left_alone():
    assert spaced("Words:\n- a\n  - b\n    more\n- c\nafter\n") == "Words:\n\n- a\n    - b\n        more\n- c\nafter\n"
    assert spaced("```\nx\n- y\n```\n") == "```\nx\n- y\n```\n"
    assert spaced("# A\n# B\n") == "# A\n## B\n"


def test_the_check_names_what_leads_nowhere_and_what_is_loaded(tmp_path):
    (tmp_path / "a.html").write_text('<h1 id="top"></h1><a href="b.html#top"></a><a href="#no"></a>'
                                     '<a href="c.html"></a><script src="https://example.com/x.js"></script>')
    (tmp_path / "b.html").write_text('<h1 id="top"></h1><a href="https://example.com"></a><a href="a.html#top"></a>')
    assert complaints(tmp_path) == ["a.html loads https://example.com/x.js", "a.html links #no", "a.html links c.html"]


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_those_that_their_scripts_draw(name):
    drawn = PICTURES[name].draw().render()
    assert (ROOT / "docs" / "pictures" / f"{name}.svg").read_text() == drawn, "python -m docs.pictures draws them anew"
    assert ElementTree.fromstring(drawn).tag.endswith("svg")


def test_the_picture_of_a_request_shows_two_orders_of_one_set():
    morning, night = (request.order(drawn) for _, _, drawn in request.STATES.values())
    assert morning != night
    assert sorted(morning) == sorted(night) == sorted(request.CANDIDATES)
