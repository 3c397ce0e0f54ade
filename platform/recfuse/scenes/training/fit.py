"""A problem becomes a scorer: in this process, or with Ray Train."""

from __future__ import annotations

from pathlib import Path

from recfuse.scenes.inference import SceneScorer
from recfuse.scenes.training.local import fit_in_process
from recfuse.scenes.training.problem import Problem
from recfuse.scenes.training.shift import recent_shift
from recfuse.scenes.training.workers import fit_on_ray


def train(problem: Problem, storage: str | Path, name: str = "scenes") -> SceneScorer:
    """Trains, with Ray Train unless `workers` is 0.

    Args:
        storage: where checkpoints go; a training of the same name that was cut off goes on from its last epoch.
    """
    if problem.start and not problem.training.epochs:
        return problem.start
    if problem.training.workers == 0:
        model = fit_in_process(problem, Path(storage).resolve() / name)
    else:
        model = fit_on_ray(problem, Path(storage).resolve(), name)
    return SceneScorer(model, problem.registry, problem.encoder, problem.positive_weight,
                       shift=recent_shift(model, problem))
