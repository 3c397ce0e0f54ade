"""What the pages promise: cited sections exist, links lead somewhere, and the repository stands by itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from recfuse import __version__

ROOT = Path(__file__).parents[2]
FOLDERS = ("platform", "jobs", "tune", "serving", "benchmarks", "tests", "docs", ".ci")
SUFFIXES = {".py", ".md", ".yaml", ".toml", ".json", ".txt", ""}
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
# `maths 1.3`, `maths P6`, `design 3.1, 3.2`, `maths 1.2 to 1.6`.
_SECTION = r"[PS]?\d+(?:\.\d+)?"
_CITED = re.compile(rf"\b(maths|design) ({_SECTION}(?:(?:, | and | to ){_SECTION})*)")
# Pages that lie outside of the repository; put together here, so that this file does not name them.
OUTSIDE = ("FORMU" + "LAS", "DESIGN" + ".md", "RAY_" + "NOTES", "STYLE" + ".md")


def texts() -> Iterator[tuple[Path, str]]:
    """Every file that people write, with its text."""
    files = [file for file in ROOT.iterdir() if file.is_file()]
    files += [file for folder in FOLDERS for file in (ROOT / folder).rglob("*") if file.is_file()]
    for file in files:
        if file.suffix in SUFFIXES and "__pycache__" not in file.parts and ".egg-info" not in str(file):
            yield file, file.read_text(errors="replace")


def headings(page: Path) -> list[str]:
    """Texts of the headings, without code blocks."""
    plain = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [line.lstrip("#").strip() for line in plain.splitlines() if re.match(r"#+ ", line)]


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings: lower case, no punctuation, hyphens for spaces."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings(page)}


def sections(name: str) -> set[str]:
    """Numbers of the sections of docs/NAME.md, and of its properties (`- **P1** …`)."""
    page = ROOT / "docs" / f"{name}.md"
    numbered = [re.match(r"(\d+(?:\.\d+)?)\.? ", f"{heading} ") for heading in headings(page)]
    properties = re.findall(r"^- \*\*([PS]\d)\*\*", page.read_text(), re.MULTILINE)
    return {match[1] for match in numbered if match} | set(properties)


@pytest.mark.parametrize("name", ["maths", "design"])
def test_every_cited_section_exists(name: str):
    known, cited = sections(name), 0
    for file, text in texts():
        for page, numbers in _CITED.findall(text):
            for number in re.findall(_SECTION, numbers) if page == name else ():
                cited += 1
                assert number in known, f"{file.relative_to(ROOT)}: {name} {number} is no section of docs/{name}.md"
    assert cited > 0


def test_maths_has_the_properties_that_tests_check():
    assert {*(f"P{number}" for number in range(1, 8)), "S1", "S2", "S3"} <= sections("maths")


def test_nothing_cites_a_text_outside():
    for file, text in texts():
        for name in OUTSIDE:
            assert name not in text, f"{file.relative_to(ROOT)} names {name}"


def test_the_glossary_has_every_word_of_the_design():
    glossary = (ROOT / "docs" / "glossary.md").read_text()
    table = (ROOT / "docs" / "design.md").read_text().partition("### 1.1 Words")[2].partition("\n## ")[0]
    words = [word for cell in re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE) for word in cell.split(", ")]
    assert len(words) > 10
    for word in words:
        assert f"\n| {word} |" in glossary, word


@pytest.mark.parametrize(("name", "most"), [("README.md", 150), ("CONTRIBUTING.md", 120)])
def test_pages_of_the_root_are_short(name: str, most: int):
    assert len((ROOT / name).read_text().splitlines()) <= most


def test_the_map_fits_a_screen():
    blocks = re.findall(r"^```\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks[0].splitlines()) <= 45
    assert "platform/recfuse/" in blocks[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), f"{page.relative_to(ROOT)}: {target}"
        assert linked.is_relative_to(ROOT), f"{page.relative_to(ROOT)}: {target} lies outside of the repository"
        assert not anchor or anchor in anchors(linked), f"{page.relative_to(ROOT)}: no heading for {target}"


def test_every_page_is_linked():
    """From README, or from a page that README links."""
    linked = {(page.parent / target.partition("#")[0]).resolve()
              for page in PAGES for target in re.findall(r"\]\(([^)\s:]+)\)", page.read_text())}
    for page in (ROOT / "docs").rglob("*.md"):
        assert page.resolve() in linked, f"{page.relative_to(ROOT)}: no page links it"


def test_the_licence_is_there():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text()


def test_every_file_names_the_same_version():
    for file, pattern in {"pyproject.toml": r'^version = "(.+)"$', "CITATION.cff": r"^version: (.+)$",
                          "Dockerfile": r"--tag recfuse:(\S+) "}.items():
        found = re.search(pattern, (ROOT / file).read_text(), re.MULTILINE)
        assert found, file
        assert found[1] == __version__, file
