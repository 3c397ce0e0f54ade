"""Trained bundles → what serving loads: a models directory with bundles, catalogue, user states and their pointer."""

from __future__ import annotations

from recfuse.bundle.pointer import Pointer
from recfuse.runtime.console import start, table
from recfuse.simulation.sources import read_source
from recfuse.simulation.world import contexts_of
from serving.export import PARTS, ExportConfig, export


def main(config: ExportConfig) -> Pointer:
    """Publishes and returns the pointer."""
    pointer = export(config, lambda logs: read_source(logs).exposures, contexts_of)
    table(f"Published in {config.models}", ["part", "name"], [(name, getattr(pointer, name)) for name in PARTS])
    return pointer


if __name__ == "__main__":
    main(start(ExportConfig, description=__doc__))
