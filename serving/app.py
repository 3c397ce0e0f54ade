"""The Serve application: `serve run serving.app:app`, or `serve deploy` with serving/config.yaml.

`app` takes its config from the file that RECFUSE_SERVING names; `build_app` from Serve's own `args`.

Two layouts. `together`: each replica is a whole application, ingress, policy and scorer in one process, so that nothing
travels between processes on the way of a request; replicas are added as one. `apart`: the ingress, the policy and the
scorer are deployments of their own, which scale by themselves or sit on other hardware, for a hop more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
from ray import serve
from ray.exceptions import RayActorError
from ray.serve import metrics
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from recfuse.bundle import BundleError, read_bundle
from recfuse.bundle.bundle import KINDS
from recfuse.bundle.pointer import read_pointer
from recfuse.config import InvalidFieldError, from_mapping, require
from recfuse.runtime import ray_compat
from serving.api import create_app
from serving.config import ServingConfig, config_from_environment, with_tokens_of_environment
from serving.door import Door
from serving.errors import Reply
from serving.formats import Body
from serving.fusion import Ranking
from serving.gateway import Gateway, UnavailableError
from serving.logs import log_as_json
from serving.meters import METERS, TAGS, LocalMeters
from serving.replicas import FusionReplica, ScenesReplica

# Small shares, so that an application of three deployments starts on two cores; serving/config.yaml may say otherwise.
_SMALL = {"num_cpus": 0.1}
# Below WARNING Serve builds a log record a request, also without an access log; our own logs are apart (serving.logs).
_QUIET = {"enable_access_log": False, "log_level": "WARNING"}


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
    async def rank(self, stage: str, body: Body) -> Reply:
        return Reply(*await self._call("rank", stage, body))

    async def decide(self, ranking: Ranking) -> Reply:
        return Reply(*await self._call("decide", ranking))

    async def feedback(self, body: Body) -> Reply:
        return Reply(*await self._call("feedback", body))


class RemoteScenes(_Remote):
    async def rank(self, scene: str, body: Body) -> Reply:
        return Reply(*await self._call("rank", scene, body))

    async def predict(self, body: Body) -> Ranking | Reply:
        predicted = await self._call("predict", body)
        return predicted if isinstance(predicted, Ranking) else Reply(*predicted)


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
class Together:
    """The whole application in one process."""

    def __init__(self, config: ServingConfig) -> None:
        _set_up_process()
        meters = ray_meters()
        self._config = config
        self._fusion, self._scenes = FusionReplica(config, meters), ScenesReplica(config, meters)

    def __serve_build_asgi_app__(self) -> Door:
        return create_app(Gateway(self._fusion, self._scenes), self._config)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve's `user_config`: {"fusion": directory of a bundle or null, "scenes": likewise}; null follows the
        pointer."""
        unknown = sorted(set(user_config) - set(KINDS))
        require(not unknown, "user_config", unknown, ", ".join(KINDS))
        self._fusion.reconfigure({"bundle": user_config.get("fusion")})
        self._scenes.reconfigure({"bundle": user_config.get("scenes")})


@serve.ingress()
class Ingress:
    """The one HTTP door where policy and scorer are apart."""

    def __init__(self, config: ServingConfig, fusion: DeploymentHandle, scenes: DeploymentHandle) -> None:
        _set_up_process()
        self._config = config
        self._gateway = Gateway(RemoteFusion(fusion), RemoteScenes(scenes))

    def __serve_build_asgi_app__(self) -> Door:
        return create_app(self._gateway, self._config)


class MeteredFusion(FusionReplica):
    def __init__(self, config: ServingConfig) -> None:
        _set_up_process()
        super().__init__(config, ray_meters())


class MeteredScenes(ScenesReplica):
    def __init__(self, config: ServingConfig) -> None:
        _set_up_process()
        super().__init__(config, ray_meters())


# The doors of Serve are wider than our own (`max_concurrent`), which refuses at once and says when to come back.
_DOOR = {"max_ongoing_requests": 1_000, "max_queued_requests": 1_000}
TogetherDeployment = serve.deployment(
    Together, name="Recfuse", ray_actor_options=_SMALL, logging_config=_QUIET, **_DOOR)
IngressDeployment = serve.deployment(
    Ingress, name="Ingress", ray_actor_options=_SMALL, logging_config=_QUIET, **_DOOR)
FusionDeployment = serve.deployment(
    MeteredFusion, name="FusionActor", ray_actor_options=_SMALL, max_ongoing_requests=32, max_queued_requests=200,
    logging_config=_QUIET)
ScenesDeployment = serve.deployment(
    MeteredScenes, name="SceneScorer", ray_actor_options=_SMALL, max_ongoing_requests=32, max_queued_requests=200,
    logging_config=_QUIET)


def build_app(config: ServingConfig | Mapping[str, Any]) -> serve.Application:
    """The application of a config, or of the `args` of Serve's YAML.

    Raises:
        InvalidFieldError: names the first bad field, or what the models directory lacks.
    """
    if not isinstance(config, ServingConfig):
        config = with_tokens_of_environment(from_mapping(ServingConfig, dict(config), source="args"))
    config = config.absolute()
    check_models(config)
    if config.layout == "together":
        return TogetherDeployment.bind(config)
    return IngressDeployment.bind(config, FusionDeployment.bind(config), ScenesDeployment.bind(config))


def check_models(config: ServingConfig) -> None:
    """Refuses here, with the cause, what every replica would refuse behind Serve's own message.

    Raises:
        InvalidFieldError: the models directory lacks something, or a bundle does not verify.
    """
    try:
        pointer = read_pointer(config.models)
        for kind in KINDS:
            path = pointer.path(config.models, kind)
            if path is None:
                raise BundleError(f"current.json: {kind} is null")
            read_bundle(path, kind=kind)  # type: ignore[arg-type]
    except BundleError as error:
        allowed = f"a directory that `make demo` or jobs/export.py wrote ({error})"
        raise InvalidFieldError("models", config.models, allowed) from None


def __getattr__(name: str) -> serve.Application:
    # `app` is built when it is asked for: whoever imports this module for `build_app` needs no models.
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return build_app(config_from_environment())
    except InvalidFieldError as error:
        # Serve's commands show this as one line instead of a traceback.
        raise click.ClickException(str(error)) from None
