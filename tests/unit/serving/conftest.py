"""A models directory with untrained models, and the whole application in this process, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recfuse.behaviours import Behaviour, CandidateFeatures, StateFeature, Vocabulary
from recfuse.bundle import read_bundle
from recfuse.bundle.pointer import Pointer, read_pointer, write_pointer
from recfuse.config import require
from recfuse.fusion.config import NetworkConfig
from recfuse.fusion.inference import FusionActor, export_policy
from recfuse.fusion.networks import GaussianPolicies, Normalisation
from recfuse.serving.api import create_app
from recfuse.serving.catalogue import Catalogue, CatalogueScorer, FixedCatalogue
from recfuse.serving.config import ServingConfig
from recfuse.serving.decision_log import DecisionLog
from recfuse.serving.formats import answering
from recfuse.serving.fusion import FusionModel, FusionService
from recfuse.serving.gateway import Backends
from recfuse.serving.meters import LocalMeters
from recfuse.serving.models import FixedModel
from recfuse.serving.replicas import FusionReplica, ScenesReplica, described
from recfuse.serving.scenes import ScenesService
from recfuse.state.store import UserState, UserStateStore

TASKS = ("click", "long_view")
TOKEN = "token-of-the-test"
CANDIDATE_WIDTH = CandidateFeatures.width_of(len(TASKS))


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return Vocabulary(
        behaviours=(Behaviour(name="watch_time", kind="long_term", transform="log1p"),
                    Behaviour(name="like", kind="short_term")),
        fusion_parameters=TASKS, state_size=4, formula="log_sum", scenes=("feed", "shop"),
        state_features=(StateFeature(name="age", mean=30.0, std=10.0, default=30.0),
                        StateFeature(name="scene", categories=("feed", "shop"))),
    )


def write_policy(root: Path, vocabulary: Vocabulary, seed: int) -> Path:
    normalisation = Normalisation.identity(vocabulary.state_size, vocabulary.action_size)
    policy = GaussianPolicies(("watch_time",), NetworkConfig(hidden=(8,)), normalisation, seed=seed)
    for parameter in policy.parameters():
        parameter.data.mul_(10.0)  # so that the mean depends on the state
    return export_policy(root, policy, vocabulary, training={}, data_fingerprint="none", metrics={})


@dataclass(frozen=True)
class FakeScores:
    probabilities: Mapping[str, np.ndarray]
    unknown: Mapping[str, int]


@dataclass
class FakeScorer:
    """click = 1 / (1 + item_id), long_view = duration / 100; ids above 1,000 are unknown."""

    version: str = "scenes-fake"
    tasks: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"feed": TASKS, "shop": TASKS, "wall": TASKS})
    seen: list[tuple[str, Mapping[str, Any], Mapping[str, np.ndarray]]] = field(default_factory=list)

    history_length: int = 2

    def check_user(self, features: Mapping[str, Any]) -> None:
        """It reads `city` as text."""
        city = features.get("city")
        require(city is None or isinstance(city, str), "user.city", city, "values of one type")

    def score(self, scene: str, user: Mapping[str, Any], items: Mapping[str, np.ndarray]) -> FakeScores:
        self.check_user(user)
        self.seen.append((scene, user, items))
        item_id = np.asarray(items["item_id"], np.float64)
        duration = np.nan_to_num(np.asarray(items["duration"], np.float64), nan=50.0) if "duration" in items else 50.0
        return FakeScores({"click": (1 / (1 + np.abs(item_id))).astype(np.float32),
                           "long_view": (np.zeros(len(item_id)) + duration / 100).astype(np.float32)},
                          {"item_id": int((item_id > 1000).sum())})


class LocalFusion(FusionService):
    rank = answering(FusionService.rank)
    decide = answering(FusionService.decide)
    feedback = answering(FusionService.feedback)

    async def describe(self) -> dict[str, Any]:
        model = self._models.arms.current
        return {"model_version": model.version, **described(model.vocabulary)}


class LocalScenes(ScenesService):
    rank = answering(ScenesService.rank)
    predict = answering(ScenesService.predict)
    check = answering(ScenesService.check)

    async def describe(self) -> dict[str, Any]:
        scorer = self._models.arms.current
        return {"model_version": scorer.version, "tasks": dict(scorer.tasks)}


def asked(api: Any, url: str, method: str, path: str, **arguments: Any) -> httpx.Response:
    """The answer of an application in this process."""
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=api), base_url=url) as client:
            return await client.request(method, path, **arguments)
    return asyncio.run(send())


@dataclass
class Application:
    """The whole application; `post` and `get` go through the real HTTP layer."""

    actor: FusionActor
    scorer: FakeScorer
    users: UserStateStore
    log: DecisionLog
    log_directory: Path
    services: tuple[FusionService, ScenesService]
    api: Any

    def request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        return asked(self.api, "http://test", method, path, **arguments)

    def post(self, path: str, body: Any) -> httpx.Response:
        if isinstance(body, bytes):
            return self.request("POST", path, content=body)
        return self.request("POST", path, json=body)

    def get(self, path: str) -> httpx.Response:
        return self.request("GET", path)


@pytest.fixture
def models(tmp_path: Path, vocabulary: Vocabulary) -> Path:
    """A models directory: fusion bundle, catalogue, users; no scenes bundle."""
    root = tmp_path / "models"
    bundle = write_policy(root, vocabulary, seed=1)
    pq.write_table(pa.table({
        "item_id": [1, 2, 3], "price": [10.0, None, 30.0], "price_before": [12.0, 20.0, 30.0],
        "image": ["1.png", "2.png", None], "duration": [10.0, 90.0, 30.0], "brand": ["a", "b", "b"],
    }), root / "catalogue.parquet")
    with UserStateStore(root / "users.sqlite") as users:
        users.put_many([("7", UserState(features={"age": 50}, history=(1, 2)))])
    write_pointer(root, Pointer(fusion=bundle.name, catalogue="catalogue.parquet", users="users.sqlite"))
    return root


def serve_policy(models: Path, bundle: Path) -> None:
    """Points the models directory to another policy."""
    pointer = read_pointer(models)
    write_pointer(models, Pointer(fusion=bundle.name, catalogue=pointer.catalogue, users=pointer.users))


@pytest.fixture
def wide(models: Path, vocabulary: Vocabulary) -> Vocabulary:
    """The vocabulary with candidate features, of the policy that `models` then points to."""
    features = CandidateFeatures(page=3, mean=(0.5,) * CANDIDATE_WIDTH, std=(2.0,) * CANDIDATE_WIDTH)
    changed = vocabulary.replace(state_size=vocabulary.state_size + CANDIDATE_WIDTH, candidate_features=features)
    serve_policy(models, write_policy(models, changed, seed=1))
    return changed


@pytest.fixture
def start(tmp_path: Path, models: Path) -> Iterator[Callable[..., Application]]:
    """Starts applications, with a scorer of one's own where it is given; other keywords go to the config."""
    started: list[Application] = []

    def begin(scorer: Any = None, **options: Any) -> Application:
        config = ServingConfig(models=str(models), decision_log=str(tmp_path / "decisions"), **options)
        pointer = read_pointer(models)
        actor = FusionActor.from_bundle(read_bundle(models / str(pointer.fusion)))
        users = UserStateStore(models / "users.sqlite")
        catalogue = Catalogue.load(models / "catalogue.parquet")
        log, scorer = DecisionLog(config.decision_log), scorer or FakeScorer()
        fusion = LocalFusion(config, FixedModel(FusionModel(actor)), log, users, FixedCatalogue(catalogue))
        scenes = LocalScenes(config, FixedModel(CatalogueScorer(scorer, catalogue)), users)
        api = create_app(Backends(fusion, scenes), config)
        started.append(Application(actor, scorer, users, log, tmp_path / "decisions", (fusion, scenes), api))
        return started[-1]

    yield begin
    for application in started:
        application.log.close()
        application.users.close()


@pytest.fixture
def application(start: Callable[..., Application]) -> Application:
    return start()


@dataclass
class Console:
    """A server without Ray."""

    api: Any
    models: Path
    log: Path
    meters: LocalMeters
    fusion: FusionReplica

    def ask(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        return asked(self.api, "http://127.0.0.1", method, path, **arguments)

    def get(self, path: str, **arguments: Any) -> Any:
        answer = self.ask("GET", path, **arguments)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def rows(self) -> int:
        return sum(file.read_bytes().rstrip(b"\0").count(b"\n") for file in self.log.glob("*"))


@pytest.fixture
def console(models: Path, tmp_path: Path) -> Iterator[Callable[..., Console]]:
    started: list[tuple[FusionReplica, ScenesReplica]] = []

    def begin(**options: Any) -> Console:
        log = tmp_path / "decisions"
        config = ServingConfig(models=str(models), decision_log=str(log), poll_seconds=0, **options)
        meters = LocalMeters(lambda *_: None, lambda *_: None, seconds=0)
        started.append((FusionReplica(config, meters), ScenesReplica(config, meters)))
        return Console(create_app(Backends(*started[-1]), config), models, log, meters, started[-1][0])

    yield begin
    for replicas in started:
        for replica in replicas:
            replica.close()
