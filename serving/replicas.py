"""What a replica of each deployment holds and answers. No Ray here, so that tests and benchmarks run it in process."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from recfuse.behaviours import Vocabulary
from recfuse.bundle import Bundle
from recfuse.bundle.bundle import BundleKind
from recfuse.bundle.pointer import read_pointer
from recfuse.config import require
from recfuse.fusion.inference import FusionActor
from recfuse.scenes.inference import SceneScorer
from recfuse.state.redis import RedisUserStates
from recfuse.state.store import UserStates, UserStateStore
from serving.config import ServingConfig
from serving.decision_log import Appends, DecisionLog
from serving.errors import Reply, answered
from serving.formats import Body
from serving.fusion import FusionModel, FusionService, Ranking
from serving.meters import Meters, NoMeters
from serving.models import ServedCatalogue, ServedModel
from serving.mover_process import MoverProcess
from serving.scenes import ScenesService

logger = logging.getLogger("recfuse.serving")
M = TypeVar("M")
T = TypeVar("T")


class _Replica(Generic[M]):
    """One kind of model that follows the pointer, with the catalogue beside it."""

    def __init__(self, config: ServingConfig, kind: BundleKind, build: Callable[[Bundle], M],
                 meters: Meters | None) -> None:
        # More threads of torch than one fight over the cores with the other replicas.
        torch.set_num_threads(1)
        self.served = ServedModel(config.models, kind, build, config.poll_seconds)
        self.catalogue = ServedCatalogue(config.models, config.poll_seconds)
        self._meters = meters or NoMeters()

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve's `user_config`: {"bundle": directory or null}; see `ServedModel.pin`."""
        self.served.pin(_bundle_of(user_config))

    def close(self) -> None:
        self.served.close()
        self.catalogue.close()

    def _loaded(self, version: Callable[[M], str]) -> dict[str, Any]:
        """What every replica says of its model in `GET /v1/models`."""
        served, canary = self.served, self.served.canary
        loaded = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(served.loaded_at))
        return {"model_version": version(served.current), "loaded_at": loaded, "error": served.error,
                "canary": None if canary is None else {"model_version": version(canary.model), "share": canary.share},
                "canary_error": served.canary_error}


class FusionReplica(_Replica[FusionModel]):
    """The fusion actor behind HTTP: its model, one decision log.

    Args:
        meters: where measurements go; None nowhere.
        log: takes decisions and feedback; None makes the one of the config.

    Raises:
        BundleError: the bundle must not be served.
    """

    def __init__(self, config: ServingConfig, meters: Meters | None = None, log: Appends | None = None) -> None:
        super().__init__(config, "fusion", _fusion_model, meters)
        self.log = log or DecisionLog(config.decision_log, fsync=config.fsync)
        self._service = FusionService(config, self.log, _users(config), lambda: self.catalogue.current, meters)
        self._moving = None if not config.session_table else MoverProcess(
            config.decision_log, config.session_table, config.models, config.window_minutes * 60, config.move_seconds,
            self._meters)

    async def rank(self, stage: str, body: Body) -> Reply:
        """`POST /v1/fusion/{stage}/rank`."""
        return await counted(self._meters, self._service.rank, self.served, stage, body)

    async def decide(self, ranking: Ranking) -> Reply:
        """The second half of `POST /v1/recommend`."""
        return await counted(self._meters, self._service.decide, self.served, ranking)

    async def feedback(self, body: Body) -> Reply:
        """`POST /v1/feedback`."""
        return await counted(self._meters, self._service.feedback, self.served, body)

    async def describe(self) -> dict[str, Any]:
        """This replica's part of `GET /v1/models`."""
        return {**self._loaded(lambda model: model.version), "catalogue_error": self.catalogue.error,
                **described(self.served.current.vocabulary)}

    def close(self) -> None:
        super().close()
        self.log.close()
        if self._moving is not None:
            self._moving.close()


class ScenesReplica(_Replica[SceneScorer]):
    """The multi-scene scorer behind HTTP.

    Args:
        meters: where measurements go; None nowhere.

    Raises:
        BundleError: the bundle must not be served.
    """

    def __init__(self, config: ServingConfig, meters: Meters | None = None) -> None:
        super().__init__(config, "scenes", SceneScorer.from_bundle, meters)
        self._service = ScenesService(config, _users(config), lambda: self.catalogue.current, meters)

    async def rank(self, scene: str, body: Body) -> Reply:
        """`POST /v1/scenes/{scene}/rank`."""
        return await counted(self._meters, self._service.rank, self.served, scene, body)

    async def predict(self, body: Body) -> Ranking | Reply:
        """The first half of `POST /v1/recommend`; a Reply where the request was refused."""
        return await counted(self._meters, self._service.predict, self.served, body)

    async def describe(self) -> dict[str, Any]:
        """This replica's part of `GET /v1/models`."""
        return {**self._loaded(lambda scorer: scorer.version), "tasks": dict(self.served.current.tasks)}


async def counted(meters: Meters, act: Callable[..., Awaitable[T]], *arguments: Any) -> T | Reply:
    """`answered`, with refusals counted."""
    result = await answered(act, *arguments)
    if isinstance(result, Reply) and result.status >= 400:
        meters.record("recfuse_refused", 1.0, {"status": str(result.status)})
        logger.info("refused", extra={"status": result.status, "answer": result.body.decode("utf-8", "replace")})
    return result


def _fusion_model(bundle: Bundle) -> FusionModel:
    return FusionModel(FusionActor.from_bundle(bundle))


def _users(config: ServingConfig) -> UserStates | None:
    if config.users:
        return RedisUserStates(config.users)
    path = read_pointer(config.models).path(config.models, "users")
    return None if path is None else UserStateStore(path)


def _bundle_of(user_config: dict[str, Any]) -> str | None:
    unknown = sorted(set(user_config) - {"bundle"})
    require(not unknown, "user_config", unknown, "bundle")
    bundle = user_config.get("bundle")
    require(bundle is None or Path(bundle).is_dir(), "user_config.bundle", bundle, "the directory of a bundle, or null")
    return bundle


def described(vocabulary: Vocabulary) -> dict[str, Any]:
    """What a client must know of a policy's vocabulary."""
    return {"stages": vocabulary.stages, "scenes": vocabulary.scenes,
            "fusion_parameters": vocabulary.fusion_parameters, "behaviours": vocabulary.behaviour_names,
            "state_size": vocabulary.state_size,
            "state_features": [feature.name for feature in vocabulary.state_features]}
