"""The Serve application: `serve run serving.app:app`, or `serve deploy` with serving/config.yaml.

`app` takes its config from the file that RECFUSE_SERVING names; `build_app` from Serve's own `args`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve import metrics
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from recfuse.behaviours import from_mapping
from serving.api import create_api
from serving.config import ServingConfig, config_from_environment, with_tokens_of_environment
from serving.errors import Reply
from serving.fusion import Ranking
from serving.gateway import Gateway, UnavailableError
from serving.meters import METERS
from serving.replicas import FusionReplica, ScenesReplica

# Small shares, so that an application of three deployments starts on two cores; serving/config.yaml may say otherwise.
_SMALL = {"num_cpus": 0.1}
_QUIET = {"enable_access_log": False}


class _Remote:
    """A deployment's methods behind its handle; no room and no replica become UnavailableError."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return await getattr(self._handle, method).remote(*arguments)
        except (BackPressureError, DeploymentUnavailableError, RayActorError) as error:
            raise UnavailableError(str(error)) from None

    async def describe(self) -> Mapping[str, Any]:
        described: Mapping[str, Any] = await self._call("describe")
        return described


class RemoteFusion(_Remote):
    async def rank(self, stage: str, body: bytes) -> Reply:
        return Reply(*await self._call("rank", stage, body))

    async def decide(self, ranking: Ranking) -> Reply:
        return Reply(*await self._call("decide", ranking))

    async def feedback(self, body: bytes) -> Reply:
        return Reply(*await self._call("feedback", body))


class RemoteScenes(_Remote):
    async def rank(self, scene: str, body: bytes) -> Reply:
        return Reply(*await self._call("rank", scene, body))

    async def predict(self, body: bytes) -> Ranking | Reply:
        predicted = await self._call("predict", body)
        return predicted if isinstance(predicted, Ranking) else Reply(*predicted)


@serve.ingress()
class Ingress:
    """The one HTTP door."""

    def __init__(self, config: ServingConfig, fusion: DeploymentHandle, scenes: DeploymentHandle) -> None:
        self._config = config
        self._gateway = Gateway(RemoteFusion(fusion), RemoteScenes(scenes))

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(self._gateway, self._config)


IngressDeployment = serve.deployment(
    Ingress, name="Ingress", ray_actor_options=_SMALL, max_ongoing_requests=100, max_queued_requests=200,
    logging_config=_QUIET)
class RayMeters:
    """Meters on Ray's own metrics, with the tags of the deployment and the replica."""

    def __init__(self) -> None:
        tags = ("stage", "scene", "status")
        self._meters = {
            name: metrics.Counter(name, description=text, tag_keys=tags) if kind == "counter" else
            metrics.Histogram(name, description=text, boundaries=list(boundaries), tag_keys=tags)
            for name, (kind, text, boundaries) in METERS.items()}

    def record(self, name: str, value: float, tags: Mapping[str, str] | None = None) -> None:
        """See `serving.meters.Meters`."""
        meter, whole = self._meters[name], {"stage": "", "scene": "", "status": "", **(tags or {})}
        meter.inc(value, whole) if isinstance(meter, metrics.Counter) else meter.observe(value, whole)


class MeteredFusion(FusionReplica):
    def __init__(self, config: ServingConfig) -> None:
        super().__init__(config, RayMeters())


class MeteredScenes(ScenesReplica):
    def __init__(self, config: ServingConfig) -> None:
        super().__init__(config, RayMeters())


FusionDeployment = serve.deployment(
    MeteredFusion, name="FusionActor", ray_actor_options=_SMALL, max_ongoing_requests=32, max_queued_requests=200,
    logging_config=_QUIET)
ScenesDeployment = serve.deployment(
    MeteredScenes, name="SceneScorer", ray_actor_options=_SMALL, max_ongoing_requests=32, max_queued_requests=200,
    logging_config=_QUIET)


def build_app(config: ServingConfig | Mapping[str, Any]) -> serve.Application:
    """The application of a config, or of the `args` of Serve's YAML.

    Raises:
        InvalidFieldError: names the first bad field.
    """
    if not isinstance(config, ServingConfig):
        config = with_tokens_of_environment(from_mapping(ServingConfig, dict(config), source="args"))
    config = config.absolute()
    return IngressDeployment.bind(config, FusionDeployment.bind(config), ScenesDeployment.bind(config))


app = build_app(config_from_environment())
