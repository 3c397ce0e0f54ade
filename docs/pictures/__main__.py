"""`python -m docs.pictures` writes every picture beside its script."""

from __future__ import annotations

from pathlib import Path

from docs.pictures import architecture, loop, request, stages

PICTURES = {"request": request, "architecture": architecture, "stages": stages, "loop": loop}


def main() -> None:
    """Writes docs/pictures/*.svg."""
    for name, module in PICTURES.items():
        (Path(__file__).parent / f"{name}.svg").write_text(module.draw().render())


if __name__ == "__main__":
    main()
