"""What a replica of each deployment holds and answers. No Ray here, so that tests and benchmarks run it in process."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from recfuse.behaviours import Vocabulary
from recfuse.bundle import Bundle
from recfuse.bundle.pointer import read_pointer
from recfuse.errors import require
from recfuse.fusion.inference import FusionActor
from recfuse.scenes.inference import SceneScorer
from recfuse.state.redis import RedisUserStates
from recfuse.state.store import UserStates, UserStateStore
from serving.config import ServingConfig
from serving.decision_log import DecisionLog
from serving.errors import Reply, answered
from serving.fusion import FusionModel, FusionService, Ranking
from serving.meters import Meters, NoMeters
from serving.models import ServedCatalogue, ServedModel
from serving.scenes import ScenesService

T = TypeVar("T")


class FusionReplica:
    """The fusion actor behind HTTP: one model, one decision log.

    Args:
        meters: where measurements go; None nowhere.

    Raises:
        BundleError: the bundle must not be served.
    """

    def __init__(self, config: ServingConfig, meters: Meters | None = None) -> None:
        # More threads of torch than one fight over the cores with the other replicas.
        torch.set_num_threads(1)
        self.served = ServedModel(config.models, "fusion", _fusion_model, config.poll_seconds)
        self.log = DecisionLog(config.decision_log, fsync=config.fsync)
        self.catalogue = ServedCatalogue(config.models, config.poll_seconds)
        self._service = FusionService(config, self.log, _users(config), lambda: self.catalogue.current, meters)
        self._meters = meters or NoMeters()

    async def rank(self, stage: str, body: bytes) -> Reply:
        """`POST /v1/fusion/{stage}/rank`."""
        return await counted(self._meters, self._service.rank, self.served.current, stage, body)

    async def decide(self, ranking: Ranking) -> Reply:
        """The second half of `POST /v1/recommend`."""
        return await counted(self._meters, self._service.decide, self.served.current, ranking)

    async def feedback(self, body: bytes) -> Reply:
        """`POST /v1/feedback`."""
        return await counted(self._meters, self._service.feedback, self.served.current, body)

    async def describe(self) -> dict[str, Any]:
        """This replica's part of `GET /v1/models`."""
        current = self.served.current
        return {**_loaded(self.served, current.version), "catalogue_error": self.catalogue.error,
                **described(current.vocabulary)}

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve's `user_config`: {"bundle": directory or null}; see `ServedModel.pin`."""
        self.served.pin(_bundle_of(user_config))

    def close(self) -> None:
        self.served.close()
        self.catalogue.close()
        self.log.close()


class ScenesReplica:
    """The multi-scene scorer behind HTTP.

    Args:
        meters: where measurements go; None nowhere.

    Raises:
        BundleError: the bundle must not be served.
    """

    def __init__(self, config: ServingConfig, meters: Meters | None = None) -> None:
        torch.set_num_threads(1)
        self.served = ServedModel(config.models, "scenes", SceneScorer.from_bundle, config.poll_seconds)
        self.catalogue = ServedCatalogue(config.models, config.poll_seconds)
        self._service = ScenesService(config, _users(config), lambda: self.catalogue.current, meters)
        self._meters = meters or NoMeters()

    async def rank(self, scene: str, body: bytes) -> Reply:
        """`POST /v1/scenes/{scene}/rank`."""
        return await counted(self._meters, _awaitable(self._service.rank), self.served.current, scene, body)

    async def predict(self, body: bytes) -> Ranking | Reply:
        """The first half of `POST /v1/recommend`; a Reply where the request was refused."""
        return await counted(self._meters, _awaitable(self._service.predict), self.served.current, body)

    async def describe(self) -> dict[str, Any]:
        """This replica's part of `GET /v1/models`."""
        scorer = self.served.current
        return {**_loaded(self.served, scorer.version), "tasks": dict(scorer.tasks)}

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve's `user_config`: {"bundle": directory or null}; see `ServedModel.pin`."""
        self.served.pin(_bundle_of(user_config))

    def close(self) -> None:
        self.served.close()
        self.catalogue.close()


async def counted(meters: Meters, act: Callable[..., Awaitable[T]], *arguments: Any) -> T | Reply:
    """`answered`, with refusals counted."""
    result = await answered(act, *arguments)
    if isinstance(result, Reply) and result.status >= 400:
        meters.record("recfuse_refused", 1.0, {"status": str(result.status)})
    return result


def _awaitable(act: Callable[..., T]) -> Callable[..., Awaitable[T]]:
    async def run(*arguments: Any) -> T:
        return act(*arguments)
    return run


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


def _loaded(served: ServedModel[Any], version: str) -> dict[str, Any]:
    loaded = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(served.loaded_at))
    return {"model_version": version, "loaded_at": loaded, "error": served.error}
