"""Boxes, arrows and text as an SVG that follows the reader's colours: light, or dark where the browser says so."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_STYLE = """
text { font: 15px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: var(--ink); }
.small { font-size: 13px; fill: var(--faint); } .strong { font-weight: 600; } .on { fill: var(--paper); }
.paper { fill: var(--paper); } .box { fill: var(--box); stroke: var(--line); }
.main { fill: var(--main); stroke: var(--main); } .line { fill: none; stroke: var(--line); stroke-width: 1.5; }
.thick { fill: none; stroke: var(--main); stroke-width: 2.5; } .head { fill: var(--line); }
.bar { fill: var(--main); } .whisker { stroke: var(--ink); stroke-width: 1.5; } .shade { fill: var(--main); }
svg { --ink: #1f2a2e; --faint: #55656b; --paper: #ffffff; --box: #eef5f4; --line: #6b8a88; --main: #00796b; }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e3eaec; --faint: #a3b3b8; --paper: #1b2023; --box: #263133; --line: #7fa3a0; --main: #4db6ac; }
}
"""


class Drawing:
    """Collects shapes; `render` gives the file.

    Args:
        width, height: in pixels, which the reader's page scales.
        title: what it shows, for readers who do not see it.
    """

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self._shapes: list[str] = []

    def text(self, x: float, y: float, words: str, style: str = "", anchor: str = "start") -> None:
        """One line, whose baseline begins, ends or has its middle at a point."""
        self._shapes.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{style}">{escape(words)}</text>')

    def rectangle(self, x: float, y: float, width: float, height: float, style: str = "box", radius: float = 6,
                  opacity: float = 1) -> None:
        """A rectangle by its upper left corner."""
        self._shapes.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" '
                            f'class="{style}" opacity="{opacity:.2f}"/>')

    def box(self, x: float, y: float, width: float, height: float, lines: Sequence[str], style: str = "box") -> None:
        """A rectangle with centred lines, the first of them strong."""
        self.rectangle(x, y, width, height, style)
        top = y + height / 2 - 9 * (len(lines) - 1) + 5
        on = " on" if style == "main" else ""
        for number, words in enumerate(lines):
            kind = "strong" if number == 0 else ("" if on else "small")
            self.text(x + width / 2, top + 18 * number, words, kind + on, "middle")

    def line(self, points: Sequence[tuple[float, float]], style: str = "line") -> None:
        """A broken line."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self._shapes.append(f'<polyline points="{path}" class="{style}"/>')

    def arrow(self, *points: tuple[float, float]) -> None:
        """A broken line with a head at its end."""
        (x0, y0), (x, y) = points[-2:]
        length = ((x - x0) ** 2 + (y - y0) ** 2) ** 0.5
        dx, dy = 8 * (x - x0) / length, 8 * (y - y0) / length
        self.line([*points[:-1], (x - dx, y - dy)])
        self._shapes.append(f'<path d="M{x:.1f},{y:.1f} L{x - dx - dy / 2:.1f},{y - dy + dx / 2:.1f} '
                            f'L{x - dx + dy / 2:.1f},{y - dy - dx / 2:.1f} Z" class="head"/>')

    def ellipse(self, x: float, y: float, rx: float, ry: float, style: str = "line", opacity: float = 1) -> None:
        """An ellipse along the axes."""
        self._shapes.append(f'<ellipse cx="{x:.1f}" cy="{y:.1f}" rx="{rx:.1f}" ry="{ry:.1f}" class="{style}" '
                            f'opacity="{opacity:.2f}"/>')

    def render(self) -> str:
        """The file, on paper of its own so that it is read on any page."""
        return "\n".join([
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" role="img">', f"<title>{escape(self.title)}</title>", f"<style>{_STYLE}</style>",
            f'<rect width="{self.width}" height="{self.height}" rx="10" class="paper"/>', *self._shapes, "</svg>", ""])
