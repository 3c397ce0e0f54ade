"""From endpoints to deployments, wherever these run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Protocol

from serving.errors import Reply, refusal
from serving.formats import Body
from serving.fusion import Ranking

logger = logging.getLogger("recfuse.serving")


class FusionBackend(Protocol):
    """`serving.replicas.FusionReplica`, in this process or behind a handle."""

    async def rank(self, stage: str, body: Body) -> Reply: ...

    async def decide(self, ranking: Ranking) -> Reply: ...

    async def feedback(self, body: Body) -> Reply: ...

    async def describe(self) -> Mapping[str, Any]: ...


class ScenesBackend(Protocol):
    """`serving.replicas.ScenesReplica`, in this process or behind a handle."""

    async def rank(self, scene: str, body: Body) -> Reply: ...

    async def predict(self, body: Body) -> Ranking | Reply: ...

    async def describe(self) -> Mapping[str, Any]: ...


class UnavailableError(Exception):
    """A backend has no room or no replica for the request."""


class Gateway:
    """Hands request bodies on as they came; whoever computes decodes them, once."""

    def __init__(self, fusion: FusionBackend, scenes: ScenesBackend) -> None:
        self._fusion, self._scenes = fusion, scenes

    async def rank_fusion(self, stage: str, body: Body) -> Reply:
        try:
            return await self._fusion.rank(stage, body)
        except UnavailableError as error:
            return overloaded(error)

    async def rank_scene(self, scene: str, body: Body) -> Reply:
        try:
            return await self._scenes.rank(scene, body)
        except UnavailableError as error:
            return overloaded(error)

    async def recommend(self, body: Body) -> Reply:
        try:
            predicted = await self._scenes.predict(body)
            # A Reply is a plain tuple after a journey between processes too; only a Ranking goes on.
            return await self._fusion.decide(predicted) if isinstance(predicted, Ranking) else predicted
        except UnavailableError as error:
            return overloaded(error)

    async def feedback(self, body: Body) -> Reply:
        try:
            return await self._fusion.feedback(body)
        except UnavailableError as error:
            return overloaded(error)

    async def models(self) -> dict[str, Any]:
        """Raises UnavailableError."""
        fusion, scenes = await asyncio.gather(self._fusion.describe(), self._scenes.describe())
        return {"fusion": fusion, "scenes": scenes}


def overloaded(error: UnavailableError) -> Reply:
    """503 with Retry-After."""
    return refusal(503, None, str(error), "fewer requests at a time; try again after a second", retry_after=1)
