"""A replica of each model: the service that answers, with the parts that it answers from and their following of the
pointer. There is no Ray here, so that tests and benchmarks run it in their own process."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from recfuse.behaviours import Vocabulary
from recfuse.bundle import Bundle
from recfuse.bundle.pointer import read_pointer
from recfuse.config import require
from recfuse.fusion.inference import FusionActor
from recfuse.runtime.devices import chosen
from recfuse.scenes.inference import SceneScorer
from recfuse.serving.catalogue import Scorer
from recfuse.serving.config import ServingConfig
from recfuse.serving.contract import Contract
from recfuse.serving.decision_log import DecisionLog, LogWriter
from recfuse.serving.formats import Body, Reply, answering
from recfuse.serving.fusion import FusionModel, FusionService, Ranking
from recfuse.serving.meters import LocalMeters, Meters
from recfuse.serving.models import Follower, ServedCatalogue, ServedModel, Swapped, Watcher
from recfuse.serving.mover_process import MoverProcess
from recfuse.serving.preview import FusionPreview, ScenesPreview
from recfuse.serving.scenes import NoScorer, ScenesService
from recfuse.serving.served_scorer import ServedScorer
from recfuse.state.redis import RedisUserStates
from recfuse.state.remembered import ReopenedUsers
from recfuse.state.store import UserStates, UserStateStore

logger = logging.getLogger("recfuse")
M = TypeVar("M")


class _Followed(Generic[M]):
    """What a replica follows: its model and the catalogue beside it."""

    def __init__(self, model: ServedModel[M], catalogue: ServedCatalogue, version: Callable[[M], str | None],
                 pin: Callable[[str | None], None]) -> None:
        self.model, self.catalogue, self._version, self._pin = model, catalogue, version, pin

    def pin(self, user_config: dict[str, Any]) -> None:
        """Serve's `user_config`: {"bundle": directory or null}; see `ServedModel.pin`."""
        unknown = sorted(set(user_config) - {"bundle"})
        require(not unknown, "user_config", unknown, "bundle")
        bundle = user_config.get("bundle")
        require(bundle is None or Path(bundle).is_dir(), "user_config.bundle", bundle,
                "the directory of a bundle, or null")
        self._pin(bundle)

    def describe(self) -> dict[str, Any]:
        """What every replica says of its parts in `GET /v1/models`.

        All replicas serve the same where each serves what it names as `wanted`: what the pointer names.
        """
        model, canary, catalogue = self.model, self.model.canary, self.catalogue
        loaded = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(model.loaded_at))
        share = None if canary is None else {"model_version": self._version(canary.model), "share": canary.share}
        return {"model_version": self._version(model.current), "wanted": model.wanted, "loaded_at": loaded,
                "error": model.error, "canary": share, "canary_error": model.canary_error,
                "catalogue": {"name": catalogue.name, "wanted": catalogue.wanted}, "catalogue_error": catalogue.error}

    def events(self) -> list[dict[str, Any]]:
        """Swaps and refusals since the replica began."""
        return [asdict(event) for event in (*self.model.events, *self.catalogue.events)]


class FusionReplica(FusionService):
    """The fusion service with its model, one decision log, and the process that moves it.

    Args:
        meters: where measurements go; None nowhere.
        follow: looks at the pointer; else whoever made this does, for several replicas together.
        log: takes decisions and feedback; None makes the one of the config.

    Raises:
        BundleError: the bundle must not be served.
    """

    def __init__(self, config: ServingConfig, meters: Meters | None = None, log: LogWriter | None = None,
                 follow: bool = True) -> None:
        _use_one_thread()
        contract = Contract(config.supplements)
        model = ServedModel(config.models, "fusion", _fusion_model, config.poll_seconds, contract=contract,
                            meters=meters)
        catalogue = ServedCatalogue(config.models, config.poll_seconds, contract, meters)
        self.log = log or DecisionLog(config.decision_log, fsync=config.fsync)
        users = _users(config)
        super().__init__(config, model, self.log, users, catalogue, meters)
        self._preview = FusionPreview(config, model, users, catalogue)
        self._followed = _Followed(model, catalogue, lambda model: model.version, model.pin)
        self._watcher = Watcher(self.followers, config.poll_seconds if follow else 0.0)
        self._mover = None if not config.session_table else MoverProcess(
            config.decision_log, config.session_table, config.models, config.window_minutes * 60, config.move_seconds,
            self.meters)

    rank = answering(FusionService.rank)
    decide = answering(FusionService.decide)
    feedback = answering(FusionService.feedback)

    async def preview(self, ranking: Ranking) -> Reply:
        """As `decide`, for nobody: see `FusionPreview`."""
        return await self._preview.decide(ranking)

    async def features(self, user_id: str) -> dict[str, Any]:
        """Features of the state that are known of a user."""
        return await self._preview.features(user_id)

    async def status(self) -> dict[str, Any]:
        """What happened to the model, and what was counted, since this replica began."""
        totals = self.meters.totals() if isinstance(self.meters, LocalMeters) else {}
        return {"events": self._followed.events(), "totals": totals, "moved": self._mover is not None}

    async def describe(self) -> dict[str, Any]:
        """This replica's part of `GET /v1/models`."""
        followed, mover = self._followed, None if self._mover is None else self._mover.describe()
        model = followed.model.current
        return {**followed.describe(), "session_table": mover,
                "session_table_error": None if mover is None else mover["error"],
                **described(model.vocabulary), "stage_policies": sorted(model.actor.stages)}

    @property
    def followers(self) -> tuple[Follower, ...]:
        """What follows the pointer."""
        return self._followed.model, self._followed.catalogue

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve's `user_config`: {"bundle": directory or null}."""
        self._followed.pin(user_config)

    def close(self) -> None:
        self._watcher.close()
        self.log.close()
        if self._mover is not None:
            self._mover.close()


class ScenesReplica(ScenesService):
    """The scenes service with its model, or with none where the pointer names no scorer.

    Args:
        meters: where measurements go; None nowhere.
        follow: looks at the pointer; else whoever made this does, for several replicas together.

    Raises:
        BundleError: the bundle must not be served.
    """

    def __init__(self, config: ServingConfig, meters: Meters | None = None, follow: bool = True) -> None:
        _use_one_thread()
        contract = Contract(config.supplements)
        device = chosen("device", config.device, torch.cuda.device_count())
        if device != "cpu":
            logger.info("serving: the scorer is on %s", device)
        model = ServedModel[Scorer](
            config.models, "scenes", functools.partial(SceneScorer.from_bundle, device=device), config.poll_seconds,
            NoScorer(), contract, meters)
        catalogue = ServedCatalogue(config.models, config.poll_seconds, contract, meters)
        users = _users(config)
        self._scorer = ServedScorer(model, catalogue, config)
        super().__init__(config, self._scorer, users, meters)
        self._preview = ScenesPreview(config, self._scorer, users)
        self._followed = _Followed(model, catalogue, lambda scorer: scorer.version, self._scorer.pin)
        self._watcher = Watcher(self.followers, config.poll_seconds if follow else 0.0)

    rank = answering(ScenesService.rank)
    # A Reply where the request is refused.
    predict = answering(ScenesService.predict)  # type: ignore[assignment]
    check = answering(ScenesService.check)  # type: ignore[assignment]

    async def preview(self, body: Body) -> Ranking | Reply:
        """As `predict`, for nobody: see `ScenesPreview`."""
        return await self._preview.predict(body)

    async def status(self) -> dict[str, Any]:
        """As that of the policy; the catalogue is followed alike."""
        totals = self.meters.totals() if isinstance(self.meters, LocalMeters) else {}
        events = [event for event in self._followed.events() if event["part"] == "scenes"]
        return {"events": events, "totals": totals}

    async def describe(self) -> dict[str, Any]:
        """This replica's part of `GET /v1/models`."""
        followed = self._followed
        return {**followed.describe(), "tasks": dict(followed.model.current.tasks)}

    @property
    def followers(self) -> tuple[Swapped, ...]:
        """What follows the pointer."""
        return (self._scorer,)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve's `user_config`: {"bundle": directory or null}."""
        self._followed.pin(user_config)

    def close(self) -> None:
        self._watcher.close()


def _use_one_thread() -> None:
    # More threads of torch than one fight over the cores with the other replicas.
    torch.set_num_threads(1)


def _fusion_model(bundle: Bundle) -> FusionModel:
    return FusionModel(FusionActor.from_bundle(bundle))


def _users(config: ServingConfig) -> UserStates | None:
    if config.users:
        return RedisUserStates(config.users)
    path = read_pointer(config.models).path(config.models, "users")
    if path is None:
        return None
    # Reads and writes that wait for long cost a user their state, so they do not wait for long.
    return ReopenedUsers(lambda: UserStateStore(path, read_seconds=0.2, write_seconds=1.0))


def described(vocabulary: Vocabulary) -> dict[str, Any]:
    """What a client must know of a policy's vocabulary."""
    return {"stages": vocabulary.stages, "scenes": vocabulary.scenes,
            "fusion_parameters": vocabulary.fusion_parameters, "behaviours": vocabulary.behaviour_names,
            "state_size": vocabulary.state_size, "context_size": vocabulary.context_size,
            "state_features": [feature.name for feature in vocabulary.state_features]}
