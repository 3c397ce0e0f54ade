"""The product in eight boxes, and which way data goes."""

from __future__ import annotations

from docs.pictures.drawing import Drawing

WIDE, HIGH = 190, 72
LEFT, MIDDLE, RIGHT = 20, 245, 470
FIRST, SECOND, THIRD = 20, 144, 268
BOXES = {
    (LEFT, FIRST): ("exposures", "what was shown, clicked"), (MIDDLE, FIRST): ("scorer", "recfuse train-scenes"),
    (RIGHT, FIRST): ("models directory", "recfuse export"), (LEFT, SECOND): ("session logs", "a row a request"),
    (MIDDLE, SECOND): ("fusion policy", "recfuse train"), (RIGHT, SECOND): ("serving", "recfuse serve"),
    (LEFT, THIRD): ("samples", "recfuse ingest"), (MIDDLE, THIRD): ("evidence", "recfuse evaluate, ab-test")}


def draw() -> Drawing:
    """The whole."""
    drawing = Drawing(680, 362, "Exposures train a scorer, session logs a policy; both are judged, exported and served")
    for (x, y), lines in BOXES.items():
        drawing.box(x, y, WIDE, HIGH, lines, "main" if lines[0] == "fusion policy" else "box")
    drawing.arrow((LEFT + WIDE, FIRST + 36), (MIDDLE, FIRST + 36))
    drawing.arrow((MIDDLE + WIDE, FIRST + 36), (RIGHT, FIRST + 36))
    drawing.arrow((LEFT + 95, SECOND + HIGH), (LEFT + 95, THIRD))
    drawing.arrow((LEFT + WIDE, THIRD + 22), (228, THIRD + 22), (228, SECOND + 36), (MIDDLE, SECOND + 36))
    drawing.arrow((MIDDLE + 95, SECOND + HIGH), (MIDDLE + 95, THIRD))
    drawing.arrow((MIDDLE + WIDE, SECOND + 22), (452, SECOND + 22), (452, FIRST + 52), (RIGHT, FIRST + 52))
    drawing.arrow((RIGHT + 95, FIRST + HIGH), (RIGHT + 95, SECOND))
    drawing.arrow((RIGHT + 95, SECOND + HIGH), (RIGHT + 95, 350), (8, 350), (8, SECOND + 36), (LEFT, SECOND + 36))
    for number, words in enumerate(("decisions and", "feedback, by", "recfuse collect")):
        drawing.text(RIGHT + 86, THIRD + 26 + 19 * number, words, "small", "end")
    return drawing
