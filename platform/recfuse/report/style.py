"""How figures of any report look, and how they come into a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager

from matplotlib import rc_context
from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
GREY = "#666"
_STYLE = {"font.size": 9, "axes.grid": True, "grid.alpha": .3, "axes.spines.top": False, "axes.spines.right": False,
          "svg.hashsalt": "recfuse", "figure.constrained_layout.use": True, "axes.axisbelow": True}


@contextmanager
def styled() -> Iterator[None]:
    """Inside, figures have the report's style."""
    with rc_context(_STYLE):
        yield


def data_uri(figure: Figure) -> str:
    """A figure as SVG within a page, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
