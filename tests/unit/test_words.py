"""Sentences of at most 30 words, README's figures those of the results pages; and that both checks can fail."""

from __future__ import annotations

import re

import pytest

from docs.site.words import READ, ROOT, alike, figures, long_sentences, sentences, undated, words, wrong_figures

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", READ)
def test_sentences_are_short(name):
    assert long_sentences(ROOT / name) == []


def test_sentences_end_where_readers_see_them_end():
    page = ("# No sentence\n\nOne here. `x` is\ntwo; so is [this one](a.md).\n- An item of five words\n- 3.5 stays "
            "whole!\n\n| no | sentence |\n\n```\nno sentence.\n```\n")
    assert list(sentences(page)) == [
        "One here.", "Code is two; so is this one.", "An item of five words", "3.5 stays whole!"]
    assert [words(each) for each in ("One here.", "a − b", "3.5 stays whole!")] == [2, 2, 3]


def test_a_long_sentence_is_found(tmp_path):
    (tmp_path / "page.md").write_text("Short. " + "Word " * 31 + "\n")
    assert [each[:8] for each in long_sentences(tmp_path / "page.md")] == ["31 words"]


@pytest.mark.parametrize("name", ["README.md", "docs/limits.md"])
def test_figures_are_those_of_the_results_pages(name):
    page = ROOT / name
    assert wrong_figures(page.read_text(), page.parent) == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "results").glob("*.md")), ids=lambda page: page.stem)
def test_results_say_of_which_day_they_are(page):
    assert undated(page.read_text()) == []


def test_a_section_without_a_date_is_found():
    page = "# Page\n\nSeen.\n\n## Speed\n3 ms, 1 May.\n\n## Words\nNone.\n\n## Size\n3 MB, 1 May 2026.\n"
    assert undated(page) == ["## Speed"]
    assert undated("# Page\n1 May 2026.\n\n## Speed\n3 ms.\n") == []


def test_six_rows_of_readme_cite_a_page_of_results():
    rows = [line for line in README.splitlines() if line.startswith("|") and "docs/results/" in line]
    assert len(rows) == 6
    assert sum(len(figures(re.sub(r"\]\([^)]*\)", "", row))) for row in rows) >= 20


def test_numbers_are_written_alike():
    assert alike("**+0.9%** [.2, 1.6], −0.5 to 1,000 and 0.0") == ".9 [.2, 1.6], −.5 to 1000 and .0"
    assert figures("+13.3% [11.1, 15.4], −2.6; ± 0.5, 3.3 ± 2.1") == ["13.3 [11.1, 15.4]", "−2.6", ".5", "3.3 ± 2.1"]


@pytest.mark.parametrize(("cell", "wrong"), [
    ("**+13.3** [11.1, 15.4]", False), ("+13.4 [11.1, 15.4]", True), ("+13.3 [11.2, 15.4]", True), ("−13.3", True),
    ("clicks −2.6", False), ("clicks 2.7", True)])
def test_another_figure_than_that_of_the_page_is_found(cell, wrong):
    row = f"| [real feedback](docs/results/real_feedback.md) | {cell} |"
    assert bool(wrong_figures(row, ROOT)) == wrong
