"""What joint training gains or loses against a model of each page's own, by what the models may see.

Three sets of inputs: ids and declared categories alone (the 39 fields of `benchmarks.scorer`), with the history
sequence, and with what was counted from that sequence too. For each, one model of all five pages against

- *alone, same recipe*: one page's rows, everything else equal. A small page then takes a handful of steps;
- *alone, own recipe*: batch size and epochs chosen for that page on the last training day, then trained on all of them.

Embeddings, vocabularies and histories of a page's own model come from that page's rows (histories also hold what was
watched before the logs). Differences of AUC on the test days are means over seeds; their intervals are a bootstrap over
users with draws shared by both models.

    python -m benchmarks.scorer_transfer --exposures DIRECTORY
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import tyro
from pydantic import Field

from benchmarks.scorer_contenders import OURS, REGISTRY, SCENES, TASKS, Ours, ScoreboardConfig, fields, rows_of
from recfuse.config import Config
from recfuse.logs.exposures import Exposures
from recfuse.runtime.console import log_to_terminal, table
from recfuse.scenes.histories import row_histories
from recfuse.scenes.training.config import TrainingConfig
from recfuse.scenes.training.fit import train
from recfuse.scenes.training.problem import prepare
from recfuse.stats.ranking import AucDifference, auc, auc_difference

# (batch size, epochs) that a page's own model may choose from, with no more steps an epoch than these.
MOST_STEPS = 300
RECIPES = ((2048, 1), (512, 1), (512, 2), (128, 1))
Scores = dict[str, np.ndarray]


class TransferConfig(Config):
    """What is compared.

    The table: the pair, its page's training rows, AUC of the joint model, and AUC of the page's own model with the gain
    of joint training over it, first with the same recipe, then with its own (batch size, epochs).
    """

    exposures: str = Field(description="The KuaiRand files are in this directory.")
    seeds: int = Field(3, ge=1, description="Every model is trained so often, and differences are averaged.")
    draws: int = Field(400, ge=1, description="The bootstrap over users draws so often.")
    last_training_day: int = Field(20220503, description="The days after this one (yyyymmdd) test.")
    threads: int = Field(1, ge=1, description="Torch computes on so many threads.")
    inputs: tuple[str, ...] = Field(tuple(OURS), description="These sets of inputs are compared.")


def main(config: TransferConfig) -> None:
    """Runs the comparison and prints it."""
    log_to_terminal()
    torch.set_num_threads(config.threads)
    exposures, training = rows_of(ScoreboardConfig(
        exposures=config.exposures, last_training_day=config.last_training_day))
    for name in config.inputs:
        begin, lines = time.monotonic(), []
        joint = [fit(exposures, training, OURS[name], (2048, 1), seed) for seed in range(config.seeds)]
        for scene in SCENES:
            lines += compare(config, exposures, training, OURS[name], scene, joint)
        table(f"{name}: AUC on the test days, {config.seeds} seeds, {time.monotonic() - begin:.0f} s",
              ["pair", "rows", "joint", "alone", "gain", "95%", "recipe", "alone", "gain", "95%"], lines)


def compare(config: TransferConfig, exposures: Exposures, training: np.ndarray, one: Ours, scene: str,
            joint: list[Scores]) -> list[list[str]]:
    """A page's lines of the table."""
    inside = exposures.rows["scene"].to_numpy(zero_copy_only=False) == scene
    own, own_training = exposures.filter(inside), training[inside]
    recipe = chosen_recipe(own, own_training, one, scene)
    alone = [[fit(own, own_training, one, how, seed, scene) for seed in range(config.seeds)]
             for how in (RECIPES[0], recipe)]
    test, lines = ~own_training, []
    for task in TASKS:
        y, users = own.column(task)[test], own.column("user_id")[test]
        ours = [scores[task][inside[~training]] for scores in joint]
        cells = []
        for models in alone:
            other = [scores[task] for scores in models]
            difference = mean_difference(y, ours, other, users, config.draws)
            cells.append([f"{np.mean([auc(y, p) for p in other]):.4f}", f"{difference.difference:.4f}",
                          f"{difference.low:.3f}..{difference.high:.3f}"])
        same, chosen = cells
        lines.append([f"{scene} {task}", f"{own_training.sum():,}", f"{np.mean([auc(y, p) for p in ours]):.4f}", *same,
                      f"{recipe[0]}, {recipe[1]}", *chosen])
    return lines


def mean_difference(y: np.ndarray, ours: list[np.ndarray], others: list[np.ndarray], users: np.ndarray,
                    draws: int) -> AucDifference:
    """Mean over seeds; the draws are the same for every seed, so the ends of the intervals may be averaged.

    That interval is a little wide: the mean of quantiles is no narrower than the quantile of means.
    """
    found = [auc_difference(y, a, b, users, draws=draws) for a, b in zip(ours, others, strict=True)]
    return AucDifference(*(float(np.mean([getattr(one, name) for one in found]))
                           for name in ("difference", "low", "high")))


def chosen_recipe(own: Exposures, training: np.ndarray, one: Ours, scene: str) -> tuple[int, int]:
    """The recipe with the largest sum of AUCs on the last training day, trained on the days before it."""
    days = own.column("day")
    last = days[training].max()
    known = days <= last
    earlier, part = own.filter(known), (days < last)[known]

    def score(recipe: tuple[int, int]) -> float:
        scores = fit(earlier, part, one, recipe, 0, scene)
        return sum(auc(earlier.column(task)[~part], scores[task]) for task in TASKS)
    return max((one for one in RECIPES if part.sum() <= one[0] * MOST_STEPS), key=score)


def fit(exposures: Exposures, training: np.ndarray, one: Ours, recipe: tuple[int, int], seed: int,
        scene: str = "") -> Scores:
    """Task → probability of the rows that did not train; of a model of one page where `scene` says so."""
    settings = TrainingConfig(workers=0, batch_size=recipe[0], epochs=recipe[1], seed=seed,
                              threads=torch.get_num_threads(), embedding_rate=one.embedding_rate,
                              dense_rate=one.dense_rate)
    registry = REGISTRY.only(scene) if scene else REGISTRY
    problem = prepare(exposures, training, registry, one.model, settings, fields(exposures, one.counts))
    with tempfile.TemporaryDirectory() as directory:
        scorer = train(problem, Path(directory))
    histories, rest = row_histories(exposures, scorer.history_length)[~training], exposures.filter(~training)
    return scorer.score_rows(rest.rows, rest.users, rest.items, histories)


if __name__ == "__main__":
    main(tyro.cli(TransferConfig, description=__doc__))
