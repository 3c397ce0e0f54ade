"""The loop: what is served is logged, what is logged is learned from, what is learned is judged and served."""

from __future__ import annotations

from docs.pictures.drawing import Drawing

WIDE, HIGH = 186, 66
STEPS = ((247, 14, "serve", "weights are drawn"), (478, 96, "collect", "decisions + feedback"),
         (478, 226, "ingest", "every row accounted for"), (247, 308, "train", "under a floor for each"),
         (16, 226, "evaluate", "on later logs"), (16, 96, "export", "the pointer moves"))


def draw() -> Drawing:
    """The whole."""
    drawing = Drawing(680, 388, "Serve, collect, ingest, train, evaluate, export, and serve again")
    for x, y, name, words in STEPS:
        drawing.box(x, y, WIDE, HIGH, [name, words], "main" if name == "serve" else "box")
    drawing.arrow((433, 47), (571, 47), (571, 96))
    drawing.arrow((571, 162), (571, 226))
    drawing.arrow((571, 292), (571, 341), (433, 341))
    drawing.arrow((247, 341), (109, 341), (109, 292))
    drawing.arrow((109, 226), (109, 162))
    drawing.arrow((109, 96), (109, 47), (247, 47))
    for number, words in enumerate(("Exploring costs something today", "and shows what other weights bring.",
                                    "Without it there is nothing to learn from.")):
        drawing.text(340, 176 + 22 * number, words, "small", "middle")
    return drawing
