"""Exposures and a scorer → a simulated world fitted to them, and its session logs under a declared behaviour policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recfuse.runtime.console import start, table
from recfuse.simulation.config import SimulateConfig

if TYPE_CHECKING:
    from recfuse.simulation.simulate import SimulateResult


def main(config: SimulateConfig) -> SimulateResult:
    """Runs the job. It needs no Ray; a finished run of the same config is taken up."""
    from recfuse.simulation.simulate import simulate

    result = simulate(config)
    table("Response model on the last day; published: of models on the whole public data", [
        "behaviour", "positives", "AUC", "95% interval", "published", "predicted rate", "observed rate"],
        result.response_rows)
    table("World under the logged policy beside the log", ["scene", "measure", "simulated", "real", "ratio", "close"],
          result.calibration_rows)
    print(result.verdict)
    table("A ranking's best of a set over a random order: world | log [95% interval]",
          result.fidelity_columns, result.fidelity_rows)
    print(result.fidelity_verdict)
    table(f"Session logs{' (world taken up)' if result.reused else ''}", ["", ""], [
        ("requests", f"{result.requests:,}"), ("logs", result.logs), ("holdout", result.holdout),
        ("world", result.world)])
    result.require(config.quarantine_limit)
    return result


def command() -> None:
    """Runs the job as the command line says."""
    main(start(SimulateConfig, description=__doc__))


if __name__ == "__main__":
    command()
