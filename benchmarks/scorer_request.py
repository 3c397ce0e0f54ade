"""One request to the scorer, one thread: from rows of items, beside the scorer as it was before items had rows.

Compared, round by round: the former `score`, which encodes each item and computes its part of the network, and
`score` of items that are known, with rows in float16 and in float32, and without rows. Behind it stand the largest
differences of predictions (of a number's share of its cut) and of logits, and how long rows take to build. CPU time
of the thread is beside the time that passed, since other programs disturb it less.

    python -m benchmarks.scorer_request --models runs/demo/models
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import tyro
from pydantic import Field

from benchmarks.scorer_former import FormerScorer
from recfuse.bundle import read_bundle
from recfuse.bundle.pointer import read_pointer
from recfuse.config import Config, require
from recfuse.runtime.console import table
from recfuse.scenes.config import Precision
from recfuse.scenes.inference import SceneScorer, Scores
from recfuse.scenes.row_files import RowFiles
from recfuse.scenes.scorer_bundle import read_parts
from recfuse.serving.catalogue import Catalogue

PRECISIONS: tuple[Precision, ...] = ("float16", "float32", "none")
FORMER = "score before rows"


class RequestConfig(Config):
    """What is measured."""

    models: str = Field("runs/demo/models", description=(
        "The scorer and the catalogue are those of this models directory; empty makes untrained ones of 8 tasks."))
    scene: str = Field("1", description="The request is for this scene.")
    candidates: tuple[int, ...] = Field((100, 1_000, 5_000), min_length=1, description=(
        "Requests have so many candidates."))
    rounds: int = Field(40, ge=1, description="Every contender runs so often.")
    built: int = Field(100_000, ge=0, description="Rows of so many items are built; 0 builds none.")


class World:
    """A scorer in its present and its former shape, with a catalogue."""

    def __init__(self, models: str, scene: str) -> None:
        pointer = read_pointer(models)
        scenes, items = pointer.path(models, "scenes"), pointer.path(models, "catalogue")
        require(scenes is not None and items is not None, "models", models, "a directory with scorer and catalogue")
        bundle = read_bundle(scenes, kind="scenes")  # type: ignore[arg-type]
        self.scorer, self.scene = SceneScorer.from_bundle(bundle), scene
        self.former = FormerScorer(self.scorer, read_parts(bundle).model.eval())  # type: ignore[arg-type]
        self.table = pq.read_table(items)
        self.catalogue = Catalogue(self.table)
        self.columns = self.catalogue.features(np.arange(len(self.catalogue)))
        history = self.catalogue.keys[:self.scorer.history_length].tolist()
        self.user: Mapping[str, Any] = {"user_id": 7, "hour": 12, "history": history}

    def contenders(self, count: int) -> dict[str, Callable[[], Scores]]:
        """Ways to score the same candidates."""
        keys = np.random.default_rng(0).choice(self.catalogue.keys, count)

        def former() -> Scores:
            columns = self.catalogue.features(self.catalogue.positions(keys))
            return self.former.score(self.scene, self.user, {**columns, "item_id": keys})

        def of(precision: Precision) -> Callable[[], Scores]:
            known = self.scorer.known_items(self.catalogue.keys, self.columns, precision)
            return lambda: self.scorer.score(self.scene, self.user, {"item_id": keys}, known,
                                             self.catalogue.positions(keys))

        return {FORMER: former, **{f"rows: {precision}": of(precision) for precision in PRECISIONS}}


def main(config: RequestConfig) -> None:
    """Runs the comparison and prints it."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        models = config.models
        if not models:
            from benchmarks.serving import write_models

            models = directory
            write_models(Path(directory))
        world, rows = World(models, config.scene), []
        for count in config.candidates:
            rows += compare(world.contenders(count), count, config.rounds, world.scorer.numbers)
        table(f"{len(world.scorer.tasks[config.scene])} tasks, history {world.scorer.history_length}, one thread, "
              f"{config.rounds} rounds, medians",
              ["candidates", "", "ms", "CPU ms", "former / it", "by CPU", "predictions", "logits", "top 10"], rows)
        if config.built:
            print(build(world, config.built, Path(directory)))


def compare(contenders: Mapping[str, Callable[[], Scores]], count: int, rounds: int,
            numbers: Mapping[str, float]) -> list[tuple[str, ...]]:
    """Rows of the table."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for round_ in range(rounds + 2):
        for name, run in contenders.items():
            begin = time.perf_counter(), time.thread_time()
            run()
            if round_ >= 2:
                times[name].append((time.perf_counter() - begin[0], time.thread_time() - begin[1]))
    medians = {name: np.median(values, axis=0) * 1e3 for name, values in times.items()}
    expected = contenders[FORMER]().probabilities
    rows = []
    for name, run in contenders.items():
        found, (wall, cpu), ratios = run().probabilities, medians[name], medians[FORMER] / medians[name]
        shares = [(found[task].astype(np.float64) / numbers.get(task, 1.0),
                   expected[task].astype(np.float64) / numbers.get(task, 1.0)) for task in expected]
        differences = (max(float(np.abs(of(mine) - of(former)).max()) for mine, former in shares)
                       for of in (np.asarray, logit))
        same = all(np.array_equal(best(found[task]), best(expected[task])) for task in expected)
        rows.append((f"{count:,}", name, f"{wall:.2f}", f"{cpu:.2f}", f"{ratios[0]:.2f}", f"{ratios[1]:.2f}",
                     *(f"{difference:.1e}" for difference in differences), "equal" if same else "other"))
    return rows


def logit(shares: np.ndarray) -> np.ndarray:
    """Log-odds."""
    return np.log(shares / (1 - shares))


def best(values: np.ndarray) -> np.ndarray:
    """The predictions of the ten best, rounded, so that candidates that are drawn twice may change places."""
    return np.unique(np.argsort(-values.round(6), kind="stable")[:10])


def build(world: World, count: int, directory: Path) -> str:
    """How long the rows of so many items take, and the bytes of their file."""
    places = np.resize(np.arange(len(world.catalogue)), count)
    columns = world.catalogue.features(places)
    begin = time.perf_counter(), time.process_time()
    world.scorer.known_items(np.arange(count), columns, "float16", files=RowFiles(directory / "rows"))
    wall, cpu = time.perf_counter() - begin[0], time.process_time() - begin[1]
    size = next((directory / "rows").glob("*.npy")).stat().st_size
    return (f"rows of {count:,} items in float16: {wall:.2f} s, {cpu:.2f} s of CPU ({cpu / count * 1e6:.1f} s a "
            f"million), {size / count * 1e6 / 1e9:.2f} GB a million")


if __name__ == "__main__":
    main(tyro.cli(RequestConfig, description=__doc__))
