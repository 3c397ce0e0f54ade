"""The deployments of Ray Serve, in two layouts.

`together`: each replica is a whole application, ingress, policy and scorer in one process, so that nothing travels
between processes on the way of a request; replicas are added as one. `apart`: the ingress, the policy and the scorer
are deployments of their own, which scale by themselves or sit on other hardware, for a hop more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve import metrics
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from recfuse.bundle.bundle import KINDS
from recfuse.config import require
from recfuse.runtime import ray_compat
from recfuse.serving.api import create_app
from recfuse.serving.config import ServingConfig
from recfuse.serving.gateway import Backends
from recfuse.serving.logs import log_as_json
from recfuse.serving.meters import METERS, TAGS, LocalMeters
from recfuse.serving.models import Watcher
from recfuse.serving.replicas import FusionReplica, ScenesReplica

# Small shares, so that an application of three deployments starts on two cores; serving/config.yaml may say otherwise.
_SMALL = {"num_cpus": 0.1}
# Below WARNING Serve builds a log record a request, also without an access log; our own logs are apart (serving.logs).
_QUIET = {"enable_access_log": False, "log_level": "WARNING"}
# Serve lets more in than the gateway (`max_concurrent`), which refuses at once and says when to come back.
_WIDE = {"max_ongoing_requests": 1_000, "max_queued_requests": 1_000}
_UNAVAILABLE = (BackPressureError, DeploymentUnavailableError, RayActorError)


class RemoteBackend:
    """A deployment behind its handle: each of its methods, as the table of endpoints names it."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        remote: Callable[..., Awaitable[Any]] = getattr(self._handle, method).remote
        return remote


def ray_meters() -> LocalMeters:
    """Meters that end in Ray's own metrics, with the tags of the deployment and the replica."""
    counters: dict[str, metrics.Counter] = {}
    gauges: dict[str, metrics.Gauge] = {}
    for name, (kind, text, _) in METERS.items():
        if kind == "gauge":
            gauges[name] = metrics.Gauge(name, description=text, tag_keys=TAGS)
        elif kind == "counter":
            counters[name] = metrics.Counter(name, description=text, tag_keys=TAGS)
        else:
            counters[f"{name}_bucket"] = metrics.Counter(f"{name}_bucket", description=text, tag_keys=(*TAGS, "le"))
            counters[f"{name}_sum"] = metrics.Counter(f"{name}_sum", description=text, tag_keys=TAGS)
    empty = dict.fromkeys(TAGS, "")
    return LocalMeters(lambda name, value, tags: counters[name].inc(value, {**empty, **tags}),
                       lambda name, value, tags: gauges[name].set(value, {**empty, **tags}))


def _set_up_process() -> None:
    """What every replica does first, in its own process."""
    log_as_json()
    ray_compat.keep_replica_on_loopback()


@serve.ingress()
class Application:
    """The whole application in one process."""

    def __init__(self, config: ServingConfig) -> None:
        _set_up_process()
        meters = ray_meters()
        self._config = config
        self._fusion = FusionReplica(config, meters, follow=False)
        self._scenes = ScenesReplica(config, meters, follow=False)
        # A policy and a scorer that need each other are taken at once.
        self._watcher = Watcher([*self._fusion.followers, *self._scenes.followers], config.poll_seconds)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return create_app(Backends(self._fusion, self._scenes), self._config)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve's `user_config`: {"fusion": directory of a bundle or null, "scenes": likewise}; null follows the
        pointer."""
        unknown = sorted(set(user_config) - set(KINDS))
        require(not unknown, "user_config", unknown, ", ".join(KINDS))
        self._fusion.reconfigure({"bundle": user_config.get("fusion")})
        self._scenes.reconfigure({"bundle": user_config.get("scenes")})


@serve.ingress()
class Ingress:
    """What takes HTTP where policy and scorer are apart."""

    def __init__(self, config: ServingConfig, fusion: DeploymentHandle, scenes: DeploymentHandle) -> None:
        _set_up_process()
        self._config = config
        self._backends = Backends(RemoteBackend(fusion), RemoteBackend(scenes), unavailable=_UNAVAILABLE)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return create_app(self._backends, self._config)


class DeployedFusion(FusionReplica):
    """The policy in a deployment of its own."""

    def __init__(self, config: ServingConfig) -> None:
        _set_up_process()
        super().__init__(config, ray_meters())


class DeployedScenes(ScenesReplica):
    """The scorer in a deployment of its own."""

    def __init__(self, config: ServingConfig) -> None:
        _set_up_process()
        super().__init__(config, ray_meters())


ApplicationDeployment = serve.deployment(
    Application, name="Recfuse", ray_actor_options=_SMALL, logging_config=_QUIET, **_WIDE)
IngressDeployment = serve.deployment(
    Ingress, name="Ingress", ray_actor_options=_SMALL, logging_config=_QUIET, **_WIDE)
FusionDeployment = serve.deployment(
    DeployedFusion, name="FusionActor", ray_actor_options=_SMALL, max_ongoing_requests=32, max_queued_requests=200,
    logging_config=_QUIET)
ScenesDeployment = serve.deployment(
    DeployedScenes, name="SceneScorer", ray_actor_options=_SMALL, max_ongoing_requests=32, max_queued_requests=200,
    logging_config=_QUIET)
