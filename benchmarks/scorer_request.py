"""One request to the scorer: 1,000 candidates of one scene, all its tasks, one thread; against bare matmuls.

Compared, round by round, medians: the whole of `SceneScorer.score` (features, model, calibration); the network alone,
with what the candidates share computed once; the network without sharing, every row whole; the same as a program of
torch.export; and bare matmuls of the shapes that the shared path needs. Weights are random: time does not see them.

    python -m benchmarks.scorer_request --exposures DIRECTORY
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
import tyro
from pydantic import Field
from torch import Tensor

from recfuse.config import Config
from recfuse.runtime.console import table
from recfuse.scenes.config import SOURCES, ModelConfig
from recfuse.scenes.dataset import scene_rows
from recfuse.scenes.inference import SceneScorer
from recfuse.scenes.mixture import MultiSceneModel
from recfuse.scenes.request import RequestNetwork, SourceSizes
from recfuse.scenes.training.config import TrainingConfig
from recfuse.scenes.training.problem import prepare, untrained
from recfuse.serving.catalogue import Catalogue
from recfuse.simulation.sources import read_source

SCENE = "1"


class RequestConfig(Config):
    """What is measured."""

    exposures: str = Field("embedded", description=(
        "The KuaiRand files are in this directory, or `embedded` generates rows."))
    candidates: int = Field(1_000, ge=1, description="The request has so many candidates.")
    rounds: int = Field(200, ge=1, description="Every contender runs so often.")
    history_length: int = Field(50, ge=0, description="The user has so many last items.")


def main(config: RequestConfig) -> None:
    """Runs the comparison and prints it."""
    torch.set_num_threads(1)
    source = read_source(config.exposures)
    exposures = scene_rows(source.exposures, source.registry)
    problem = prepare(exposures, np.ones(exposures.rows.num_rows, bool), source.registry,
                      ModelConfig(history_length=config.history_length), TrainingConfig(workers=0, minimum_positives=1))
    model = untrained(problem).eval()
    scorer = SceneScorer(model, problem.registry, problem.encoder, problem.positive_weight)
    network = RequestNetwork(model, *(SourceSizes(*problem.encoder.sizes(source)) for source in SOURCES))
    rng = np.random.default_rng(0)
    catalogue = Catalogue(exposures.items)  # as a server keeps them
    chosen = exposures.items["item_id"].to_numpy()[rng.integers(0, exposures.items.num_rows, config.candidates)]
    items = {**catalogue.features(catalogue.positions(chosen)), "item_id": chosen}
    user = exposures.users.slice(3, 1).to_pylist()[0] | {
        "hour": 12, "history": exposures.items["item_id"].to_pylist()[: config.history_length]}
    index = problem.registry.scene_names.index(SCENE)
    shared, whole = request_of(scorer, model, user, items, index), rows_of(scorer, user, items, index)
    common = sum(part[0].shape[1] * model.config.embedding_size + part[1].shape[1] for part in (shared[0], shared[2]))
    own = model.input_size - common
    with torch.inference_mode():
        exported = torch.export.export(Whole(model, index), whole).module()
        logits = network.logits(*shared)
        differences = [float((logits - other(*whole)).abs().max()) for other in (Whole(model, index), exported)]
        contenders: dict[str, Callable[[], object]] = {
            "SceneScorer.score": lambda: scorer.score(SCENE, user, items),
            "network, shared once": lambda: network.logits(*shared),
            "network, every row whole": lambda: Whole(model, index)(*whole),
            "the same, torch.export": lambda: exported(*whole),
            "bare matmuls": bare(model, config, len(items["item_id"]), index, own)}
        times = {name: [] for name in contenders}
        for _ in range(config.rounds):
            for name, run in contenders.items():
                begin = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - begin)
    base = np.median(times["bare matmuls"])
    table(f"{config.candidates:,} candidates, {len(problem.registry.tasks_of(SCENE))} tasks, "
          f"{problem.encoder.fields} fields, history {config.history_length}, one thread, {config.rounds} rounds",
          ["", "ms, median", "ms, best", "to bare matmuls"],
          [(name, f"{np.median(values) * 1e3:.2f}", f"{min(values) * 1e3:.2f}", f"{np.median(values) / base:.2f}")
           for name, values in times.items()])
    print(f"largest difference of logits to the shared path: whole {differences[0]:.1e}, exported {differences[1]:.1e}")


class Whole(torch.nn.Module):
    """One scene's logits of rows that hold everything, without the grouping by scene: torch.export cannot trace it."""

    def __init__(self, model: MultiSceneModel, scene: int) -> None:
        super().__init__()
        self.model, self.scene = model, scene

    def forward(self, ids: Tensor, numbers: Tensor, history: Tensor) -> Tensor:
        shared = self.model.shared(self.model.features(ids, numbers, history))
        return self.model.scene_logits(shared, self.scene, self.model.spans[self.scene])


def request_of(scorer: SceneScorer, model: MultiSceneModel, user: dict, items: dict, scene: int) -> tuple:
    """What `RequestNetwork.logits` takes."""
    encoder, count = scorer.encoder, len(items["item_id"])
    given = {name: [value] for name, value in user.items() if name != "history"}
    parts = [encoder.encode("user", given, 1), encoder.encode("item", items, count),
             encoder.encode("context", {**given, "scene": [SCENE]}, 1)]
    history = torch.from_numpy(encoder.encode_history(np.array([user["history"]], np.int64)))
    return *((torch.from_numpy(part.ids), torch.from_numpy(part.numbers)) for part in parts), history, scene


def rows_of(scorer: SceneScorer, user: dict, items: dict, scene: int) -> tuple[Tensor, Tensor, Tensor]:
    """ids, numbers and histories of whole rows."""
    (u, un), (i, im), (c, cn), history, _ = request_of(scorer, None, user, items, scene)  # type: ignore[arg-type]
    count = len(i)
    return (torch.cat([u.expand(count, -1), i, c.expand(count, -1)], 1),
            torch.cat([un.expand(count, -1), im, cn.expand(count, -1)], 1), history.expand(count, -1).contiguous())


def bare(model: MultiSceneModel, config: RequestConfig, count: int, scene: int, own: int) -> Callable[[], object]:
    """The matmuls of the shared path, on tensors that lie ready; `own` columns of x are the candidates'."""
    sizes, width = model.config, model.config.embedding_size
    tasks = model.spans[scene].stop - model.spans[scene].start
    experts, (first, second) = sizes.experts, sizes.expert_layers[:2]
    outputs = experts * first + tasks * experts
    x, w = torch.randn(count, own), torch.randn(own, outputs)
    hidden, w2 = torch.randn(experts, count, first), torch.randn(experts, first, second)
    gates, mixed = torch.rand(count, tasks, experts), torch.randn(count, experts, second)
    towers = [torch.randn(tasks, a, b) for a, b in zip((second, *sizes.tower_layers), (*sizes.tower_layers, 1),
                                                       strict=True)]
    history, query = torch.randn(config.history_length, width), torch.randn(count, width)

    def run() -> None:
        torch.mm(x, w)
        torch.bmm(hidden, w2)
        top = torch.bmm(gates, mixed).transpose(0, 1)
        for weight in towers:
            top = torch.bmm(top, weight)
        torch.mm(torch.mm(query, history.T), history)

    return run


if __name__ == "__main__":
    main(tyro.cli(RequestConfig, description=__doc__))
