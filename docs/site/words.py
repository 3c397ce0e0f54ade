"""Counts the words of sentences, compares figures with the pages they cite, and asks results for their date.

    python -m docs.site.words

A sentence ends at a full stop, a question or exclamation mark, or where its paragraph or item ends. Code is one word;
headings, tables and code blocks have no sentences.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from docs.site import notebook

ROOT = Path(__file__).parents[2]
MOST = 30
# What newcomers read. Results, decisions and maths are looked things up in.
READ = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/first_policy.ipynb", *(f"docs/{name}.md" for name in (
    "concepts", "glossary", "faq", "limits", "tutorial", "logs", "exposures", "algorithms", "sweeps", "python",
    "serving", "release", "extending", "reference/README")),
        *(f"docs/decisions/{file.name}" for file in sorted((ROOT / "docs" / "decisions").glob("*.md"))))
_ENDS = re.compile(r"(?<=[.!?])[\"”*)\]]*\s+(?=[\"“*(\[`]*[^a-z])")
_DATE = re.compile(r"\d{1,2} (?:January|February|March|April|May|June|July|August|September|October|November|December) "
                   r"20\d\d")
_NUMBER = r"(?:\d*\.\d+|\d+)"


def sentences(text: str) -> Iterator[str]:
    """Of a page in Markdown, in order."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`]+`", "Code", text)
    paragraph: list[str] = []
    for line in [*text.splitlines(), ""]:
        starts = re.match(r"\s*(?:[-*]|\d+\.) ", line)
        if starts or not line.strip() or line.lstrip().startswith(("#", "|")):
            yield from (part for part in _ENDS.split(" ".join(paragraph)) if part.strip())
            paragraph = []
        if line.strip() and not line.lstrip().startswith(("#", "|")):
            paragraph.append(line.strip()[len(starts[0].strip()) if starts else 0:].strip())


def words(sentence: str) -> int:
    """How many words it has; dashes and signs alone are none."""
    return sum(any(letter.isalnum() for letter in word) for word in sentence.split())


def long_sentences(page: Path) -> list[str]:
    """Those above the limit, with their number of words."""
    prose = notebook.text(page) if page.suffix == ".ipynb" else page.read_text()
    return [f"{words(each)} words: {each}" for each in sentences(prose) if words(each) > MOST]


def alike(text: str) -> str:
    """The text with its numbers written alike: no stars, per cent, plus, zero before the point, comma in thousands."""
    text = re.sub(r"[*%]|(?<=\d),(?=\d{3}(?!\d))", "", text)
    return re.sub(rf"(?<![\w.])([+−-]?)0?({_NUMBER})(?!\w)", lambda number: (
        ("" if number[1] == "+" else number[1].replace("-", "−")) + number[2]), text)


def figures(text: str) -> list[str]:
    """The numbers of a text written alike, each with its interval or its error where it has one."""
    one = rf"−?{_NUMBER}"
    return re.findall(rf"(?<![\w.]){one}(?: \[{one}, {one}\]| ± {one})?(?![\w])", alike(text))


def wrong_figures(text: str, directory: Path) -> list[str]:
    """Figures in a page's tables that the page of results which their row links does not have, a line each.

    Args:
        directory: that the page's links start from.
    """
    found = []
    for line in text.splitlines():
        cited = re.search(r"\]\(([\w/.]*\.md)[^)]*\)", line)
        if line.startswith("|") and cited is not None and _is_result(directory / cited[1]):
            known = alike((directory / cited[1]).read_text())
            found += [f"{cited[1]} has no {number}: {line}" for number in figures(re.sub(r"\]\([^)]*\)", "", line))
                      if not re.search(rf"(?<![\w.−]){re.escape(number)}(?![\w]|\.\d)", known)]
    return found


def undated(page: str) -> list[str]:
    """Headings of a page of results whose text has figures and neither it nor the page's beginning says which day's."""
    beginning, *sections = re.split(r"^(?=##)", page, flags=re.MULTILINE)
    if _DATE.search(beginning):
        return []
    bodies = [section.partition("\n") for section in sections]
    return [heading for heading, _, body in bodies if re.search(r"\d", body) and not _DATE.search(body)]


def _is_result(page: Path) -> bool:
    return page.resolve().parent == ROOT / "docs" / "results"


def main() -> None:
    """Prints what is wrong; exit code 1 where there is anything."""
    wrong = [f"{name}: {each}" for name in READ for each in long_sentences(ROOT / name)]
    wrong += wrong_figures((ROOT / "README.md").read_text(), ROOT)
    for page in sorted((ROOT / "docs" / "results").glob("*.md")):
        wrong += [f"{page.name}: {each} says not of which day its figures are" for each in undated(page.read_text())]
    print("\n".join(wrong) or f"no sentence above {MOST} words; README's figures are those of the results, all dated")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
