"""Today's hand-tuned weights → the same with exploration, as a bundle that serving loads: σ is the largest that changes
no more than a given share of the page, tried on one's own candidates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recfuse.runtime.console import start, table
from recfuse.serving.config import ExploreConfig

if TYPE_CHECKING:
    from recfuse.serving.explore import ExploreResult


def main(config: ExploreConfig) -> ExploreResult:
    """Chooses σ, publishes, and says what it changes."""
    from recfuse.serving.explore import explore

    result = explore(config)
    found, change = result.exploration, result.exploration.change
    table(f"Published in {config.models}: {result.pointer.fusion}", ["prediction", "weight", "σ"], [
        (name, f"{weight:g}", f"{sigma:.4g}")
        for name, weight, sigma in zip(result.parameters, result.weights, found.sigma, strict=True)])
    print(f"share of the {config.top} items of a page that change: {change.share:.3f} ± {1.96 * change.error:.3f} "
          f"({result.requests:,} requests, {config.draws} draws each; bound {config.change:g})")
    print(f"correlation of ranks: {change.correlation:.3f}; first item changes in {change.first:.1%} of requests")
    if not found.bounded:
        print("no σ changes as much of these pages as allowed; the largest that was tried is taken")
    if result.left_out:
        print(f"left out: {result.left_out:,} requests without candidates or with predictions that are no numbers")
    if result.before not in (None, result.pointer.fusion):
        print(f"until now {result.before} served")
    return result


def command() -> None:
    """The job's command line."""
    main(start(ExploreConfig, description=__doc__))


if __name__ == "__main__":
    command()
