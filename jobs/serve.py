"""A models directory → HTTP on loopback, by Ray Serve, until Ctrl-C; a policy is enough, a scorer is optional."""

from __future__ import annotations

import os
import signal
import socket
import threading
from types import FrameType

from pydantic import Field, model_validator

from recfuse.config import InvalidFieldError, require
from recfuse.runtime.console import start
from recfuse.serving.config import ServingConfig, Supplements, with_tokens_of_environment


class ServeConfig(Supplements):
    """Config of the job."""

    models: str = Field("runs/models", description=(
        "This directory holds `current.json` and what it names; `recfuse explore` and `recfuse export` write it."))
    port: int = Field(8000, ge=1, le=65_535, description="The server listens on this port of loopback.")
    decisions: str = Field("runs/decisions", description=(
        "Decisions and feedback are written to files in this directory before they are answered."))
    logs: str = Field("", description=(
        "Decisions are moved in the background to session logs in this directory or URL; empty leaves that to "
        "`recfuse collect`."))
    window_minutes: float = Field(60.0, ge=0, description=(
        "Feedback counts so many minutes after its request; where `logs` is named, decisions are moved after it."))
    runs: str = Field("runs", description="The console lists the runs beneath this directory.")
    explore: bool = Field(True, description=(
        "A request that does not say gets a sample of the policy (true) or its mean (false)."))

    @model_validator(mode="after")
    def _check(self) -> ServeConfig:
        require(self.logs != self.decisions, "logs", self.logs, "a directory other than decisions")
        return self


def main(config: ServeConfig) -> None:
    """Serves until the process is interrupted or terminated; then nothing that it started is left."""
    _require_free(config.port)
    # Ray reads them when it is imported, so everything that imports it comes after.
    from recfuse.serving.environment import settings

    os.environ |= {name: value for name, value in settings().items() if name not in os.environ}
    from recfuse.runtime.cluster import cluster
    from recfuse.serving.app import check_models
    from recfuse.serving.local import running
    from recfuse.serving.starting import answering

    serving = with_tokens_of_environment(ServingConfig(
        models=config.models, decision_log=config.decisions, session_table=config.logs, explore=config.explore,
        window_minutes=config.window_minutes, runs=config.runs, **dict(config.supplements))).absolute()
    check_models(serving)
    signal.signal(signal.SIGTERM, _interrupt)
    with answering("127.0.0.1", config.port), cluster(), running(serving, config.port) as url:
        _say(url, config.decisions)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("ending", flush=True)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise InvalidFieldError("port", port, f"a free port of 127.0.0.1 ({error.strerror})") from None


def _say(url: str, decisions: str) -> None:
    import httpx

    from recfuse.serving.endpoints import MODELS, RECOMMEND, Offer
    from recfuse.serving.examples import curl

    token = os.environ.get("RECFUSE_TOKENS", "").split(",")[0]
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    models = httpx.get(url + MODELS.path, headers=headers, timeout=30).raise_for_status().json()
    policy, scorer = models["fusion"]["model_version"], models["scenes"]["model_version"]
    print(f"serving {policy}, {scorer or 'no scorer'}, on {url} (loopback); decisions go to {decisions}; "
          "Ctrl-C ends it")
    print(curl(RECOMMEND, Offer.of(models), url, bool(headers)), flush=True)


def command() -> None:
    """The job's command line."""
    main(start(ServeConfig, description=__doc__))


if __name__ == "__main__":
    command()
