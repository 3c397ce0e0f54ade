"""One request: candidates × predictions → weights → order, in two states. The product's own formula ranks."""

from __future__ import annotations

import torch

from docs.pictures.drawing import Drawing
from recfuse.fusion.ranking import fuse, rank

PREDICTIONS = ("click", "like", "watch")
SHOWN = ("click", "like", "watch, s")
CANDIDATES = {"news": (0.60, 0.02, 20), "song": (0.45, 0.10, 45), "talk": (0.25, 0.04, 240),
              "film": (0.50, 0.06, 60), "match": (0.30, 0.03, 120)}
# A policy's Gaussian in two states, μ and σ, and what was drawn from it.
STATES = {"in the morning, two minutes": ((1.2, 0.5, 0.2), (0.15, 0.12, 0.08), (1.3, 0.45, 0.15)),
          "at night, an hour": ((0.3, 0.4, 1.1), (0.12, 0.12, 0.15), (0.25, 0.5, 1.2))}
WORDS = ("A policy reads the state: who, when, what", "there is to rank. It gives a Gaussian over",
         "weights, and a vector is drawn from it.", "Σ weight · log(prediction) ranks.")
LEFT, CELL, ROW, SCALE = 16, 66, 34, 62


def order(weights: tuple[float, ...]) -> list[str]:
    """The candidates, best first (maths 2.2)."""
    predictions = torch.tensor(list(CANDIDATES.values()), dtype=torch.float64)
    return [list(CANDIDATES)[place] for place in rank(fuse(predictions, torch.tensor(weights).double(), "log_sum"))]


def draw() -> Drawing:
    """The whole."""
    drawing = Drawing(680, 404, "Two requests for the same five candidates, whose predictions are weighed differently")
    drawing.text(LEFT, 34, "candidates × predictions", "strong")
    _table(drawing, 50)
    for number, (words, (mean, spread, drawn)) in enumerate(STATES.items()):
        top = 16 + 194 * number
        drawing.arrow((LEFT + 4 * CELL + 4, 150), (318, 150), (318, top + 80), (342, top + 80))
        _panel(drawing, 342, top, words, mean, spread, drawn)
    for number, words in enumerate(WORDS):
        drawing.text(LEFT, 306 + 22 * number, words, "small")
    return drawing


def _table(drawing: Drawing, top: float) -> None:
    largest = [max(column) for column in zip(*CANDIDATES.values(), strict=True)]
    for column, name in enumerate(SHOWN):
        drawing.text(LEFT + CELL * (column + 1.5), top + 18, name, "small", "middle")
    for row, (name, values) in enumerate(CANDIDATES.items()):
        y = top + 28 + ROW * row
        drawing.text(LEFT, y + 21, name)
        for column, value in enumerate(values):
            x = LEFT + CELL * (column + 1)
            drawing.rectangle(x + 2, y + 2, CELL - 4, ROW - 4, "shade", 4, 0.08 + 0.37 * value / largest[column])
            drawing.text(x + CELL / 2, y + 21, f"{value:g}", "", "middle")


def _panel(drawing: Drawing, x: float, top: float, words: str, mean: tuple[float, ...], spread: tuple[float, ...],
           drawn: tuple[float, ...]) -> None:
    drawing.rectangle(x, top, 322, 178)
    drawing.text(x + 12, top + 24, words, "strong")
    for number, name in enumerate(PREDICTIONS):
        y, start = top + 40 + 24 * number, x + 66
        drawing.text(x + 12, y + 14, name, "small")
        drawing.rectangle(start, y + 2, SCALE * 2.3 * mean[number], 14, "bar", 3, 0.45)
        low, high = (start + SCALE * 2.3 * (mean[number] + sign * spread[number]) for sign in (-1, 1))
        drawing.line([(low, y + 9), (high, y + 9)], "whisker")
        drawing.ellipse(start + SCALE * 2.3 * drawn[number], y + 9, 4.5, 4.5, "main")
        drawing.text(x + 310, y + 14, f"{drawn[number]:g}", "", "end")
    for place, name in enumerate(order(drawn)):
        drawing.box(x + 12 + 60 * place, top + 128, 56, 36, [name], "main" if place == 0 else "paper")
