"""How much what a prediction means differs by person, in exposures (maths 4.8).

Variance over persons of the slope of answers on predictions, whose mean is 1, on exposures that the scorer never saw;
a person is a user in a scene. `WorldConfig.meaning_spread` is the root of it.

    python -m benchmarks.meaning --exposures DIR --scorer runs/scenes/bundles
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from recfuse.config import Config
from recfuse.logs.exposures import LABELS
from recfuse.runtime.console import start, table
from recfuse.simulation.fidelity import unseen
from recfuse.simulation.meaning import MeaningSpread, meaning_spread
from recfuse.simulation.predictions import task_names
from recfuse.simulation.simulate import load_scorer
from recfuse.simulation.sources import read_source

_POSITIVES = 300


class MeaningConfig(Config):
    """Which log is asked, and whose predictions."""

    exposures: str = Field("embedded", description=(
        "A directory with KuaiRand files is read; `embedded` is a generator."))
    scorer: str = Field(
        "runs/scenes/bundles", description="This is a bundle of kind `scenes`, or a directory that holds one.")


def main(config: MeaningConfig) -> dict[str, MeaningSpread]:
    """Prints, and returns, the spread by behaviour."""
    scorer, exposures = load_scorer(config.scorer), read_source(config.exposures).exposures
    exposures = exposures.filter(np.isin(exposures.column("scene"), list(scorer.tasks)))
    scores, rows = scorer.score_exposures(exposures), unseen(exposures)
    person = np.unique(np.stack([np.unique(exposures.column(name), return_inverse=True)[1]
                                 for name in ("user_id", "scene")]), axis=1, return_inverse=True)[1].reshape(-1)
    spreads = {}
    for name in task_names(scorer):
        binary = name in LABELS
        known = rows & np.isfinite(scores[name])
        if (not binary and name != "watch_time") or (binary and exposures.column(name)[known].sum() < _POSITIVES):
            continue
        score = scores[name][known].astype(np.float64).clip(1e-6, 1 - 1e-6 if binary else None)
        answer = exposures.column(name)[known].astype(np.float64)
        spreads[name] = meaning_spread(answer if binary else np.log1p(answer),
                                       np.log(score) - (np.log1p(-score) if binary else 0.0), person[known],
                                       binary=binary)
    table("Variance over persons of the slope of answers on predictions (mean 1), with 95% intervals",
          ["behaviour", "persons", "exposures", "mean slope", "variance", "95% interval"],
          [(name, f"{each.users:,}", f"{each.rows:,}", f"{each.slope:.2f}", f"{each.variance:+.2f}",
            f"[{each.low:+.2f}, {each.high:+.2f}]") for name, each in spreads.items()])
    return spreads


if __name__ == "__main__":
    main(start(MeaningConfig, description=__doc__))
