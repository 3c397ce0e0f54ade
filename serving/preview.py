"""Decisions that nobody is served by: as the service decides, without a row of the log or a count in a meter."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any

from recfuse.serving.catalogue import CatalogueScorer, CurrentCatalogue
from recfuse.serving.config import ServingConfig
from recfuse.serving.formats import Body, Reply, answering
from recfuse.serving.fusion import FusionModel, FusionService, Ranking
from recfuse.serving.models import Models
from recfuse.serving.scenes import ScenesService
from recfuse.state.clock import clock_features
from recfuse.state.remembered import RememberedUsers
from recfuse.state.store import UserStates


class NoLog:
    """A log that takes rows and keeps none."""

    def append(self, kind: str, row: dict[str, Any]) -> Awaitable[None]:
        """See `LogWriter`."""
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    def close(self) -> None:
        return None


class FusionPreview:
    """The fusion service on a log that keeps nothing: whatever it is asked, no decision is written.

    Args:
        config, models, users, catalogue: those of the service that serves.
    """

    def __init__(self, config: ServingConfig, models: Models[FusionModel], users: UserStates | None,
                 catalogue: CurrentCatalogue) -> None:
        self._config, self._models, self._users = config, models, RememberedUsers(users)
        self._service = FusionService(config, models, NoLog(), users, catalogue)
        self.meters = self._service.meters

    @answering
    async def decide(self, ranking: Ranking) -> Reply:
        """The answer of a recommendation, with each item's predictions and the vocabulary of the model that decided.

        Raises:
            InvalidFieldError, RefusedError: the request names something that the model does not have.
        """
        vocabulary = self._models.arms.of(ranking.user_id).vocabulary
        return await self._service.decide(replace(
            ranking, explain=True, packed=False, extra={**ranking.extra, "vocabulary": vocabulary.to_dict()}))

    async def features(self, user_id: str) -> dict[str, Any]:
        """Those features of the state that are stored of a user, or that the clock tells."""
        vocabulary = self._models.arms.of(user_id).vocabulary
        known = (await self._users.get(user_id)).state.features
        told = {**known, **clock_features(vocabulary.time_zone or self._config.time_zone)}
        return {feature.name: told[feature.name] for feature in vocabulary.state_features if feature.name in told}


class ScenesPreview:
    """The scenes service without meters.

    Args:
        config, models, users: those of the service that serves.
    """

    def __init__(self, config: ServingConfig, models: Models[CatalogueScorer], users: UserStates | None) -> None:
        self._service = ScenesService(config, models, users)
        self.meters = self._service.meters

    @answering
    async def predict(self, body: Body) -> Ranking:
        """What the policy is to rank.

        Raises:
            RefusedError: the request is bad, or names something that the model does not have.
        """
        return await self._service.predict(body)
