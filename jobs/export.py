"""Trained bundles → what serving loads: a models directory with bundles, catalogue, user states and their pointer.

What is named is published: a policy alone, a scorer beside it, the catalogue and the users of exposures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recfuse.runtime.console import start, table
from recfuse.serving.config import PARTS, ExportConfig

if TYPE_CHECKING:
    from recfuse.bundle.pointer import Pointer
    from recfuse.logs.exposures import Exposures


def main(config: ExportConfig) -> Pointer:
    """Publishes and returns the pointer."""
    from recfuse.serving.export import export
    from recfuse.simulation.world import contexts_of

    pointer = export(config, _exposures, contexts_of)
    table(f"Published in {config.models}", ["part", "name", ""], [
        (part, getattr(pointer, part) or "none", "now" if part in config.published else "as before")
        for part in PARTS])
    return pointer


def _exposures(config: ExportConfig) -> Exposures:
    from recfuse.simulation.sources import read_source

    return read_source(config.exposures, config.layout).exposures


def command() -> None:
    """Runs the job as the command line says."""
    main(start(ExportConfig, description=__doc__))


if __name__ == "__main__":
    command()
