"""The two stages, in a plane of two weights. Centres are those of the closed form (maths 1.5, P3) for an advantage that
is linear in the weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from docs.pictures.drawing import Drawing

LOGGED, SPREAD = (0.40, 0.36), (0.08, 0.08)
# What stage one makes of two short-term behaviours: μ and σ.
SHORT = {"like": ((0.33, 0.60), (0.06, 0.07)), "comment": ((0.50, 0.66), (0.07, 0.06))}
MULTIPLIERS = (0.3, 0.2)
SLOPE = (18.0, -6.0)  # of the watch-time advantage
LEFT, BOTTOM, SIZE, ORIGIN = 350, 330, 480, 0.22


def middle() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """μ and σ of the geometric mean of the short-term policies, whose exponents are λ_j/Λ."""
    share = np.array(MULTIPLIERS) / sum(MULTIPLIERS)
    mean, spread = (np.array([each[index] for each in SHORT.values()]) for index in (0, 1))
    variance = 1 / (share[:, None] / spread**2).sum(0)
    return variance * (share[:, None] * mean / spread**2).sum(0), np.sqrt(variance)


def long_term() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The same, tilted by exp(A/Λ): a linear A moves the mean by σ² · slope / Λ."""
    mean, spread = middle()
    return mean + spread**2 * np.array(SLOPE) / sum(MULTIPLIERS), spread


def draw() -> Drawing:
    """The whole."""
    drawing = Drawing(680, 360, "Stage one learns a policy per short-term behaviour, stage two one near all of them")
    boxes = (("session log", "weights that were drawn, feedback"), ("critics", "one per behaviour"),
             ("stage one", "a policy per short-term behaviour"), ("stage two", "more watch time, near those policies"))
    for number, lines in enumerate(boxes):
        drawing.box(16, 16 + 86 * number, 290, 58, lines, "main" if number == 3 else "box")
        if number:
            drawing.arrow((161, 16 + 86 * number - 28), (161, 16 + 86 * number))
    _plane(drawing)
    return drawing


def _plane(drawing: Drawing) -> None:
    def place(point: tuple[float, float] | NDArray[np.float64]) -> tuple[float, float]:
        return LEFT + SIZE * (float(point[0]) - ORIGIN), BOTTOM - SIZE * (float(point[1]) - ORIGIN)

    drawing.arrow((LEFT - 20, BOTTOM), (664, BOTTOM))
    drawing.arrow((LEFT - 20, BOTTOM), (LEFT - 20, 16))
    drawing.text(664, BOTTOM + 18, "weight of predicted watch time", "small", "end")
    drawing.text(LEFT - 12, 28, "weight of predicted likes", "small")
    for name, (mean, spread) in {"logged": (LOGGED, SPREAD), **SHORT}.items():
        x, y = place(mean)
        drawing.ellipse(x, y, 1.5 * SIZE * spread[0], 1.5 * SIZE * spread[1])
        drawing.text(x, y + (5 if name == "logged" else -1.5 * SIZE * spread[1] - 7), name, "small", "middle")
    mean, spread = long_term()
    x, y = place(mean)
    drawing.ellipse(x, y, 1.5 * SIZE * spread[0], 1.5 * SIZE * spread[1], "thick")
    drawing.arrow(place(middle()[0]), (x, y))
    drawing.text(x + 1.5 * SIZE * spread[0] + 8, y + 5, "stage two", "strong")
