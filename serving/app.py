"""The Serve application: `serve run recfuse.serving.app:app`, or `serve deploy` with serving/config.yaml.

`app` takes its config from the file that RECFUSE_SERVING names; `build_app` from Serve's own `args`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
from ray import serve

from recfuse.bundle import BundleError
from recfuse.bundle.pointer import read_pointer
from recfuse.config import InvalidFieldError, from_mapping
from recfuse.serving.config import ServingConfig, config_from_environment, with_tokens_of_environment
from recfuse.serving.contract import Contract, paths_of
from recfuse.serving.deployments import ApplicationDeployment, FusionDeployment, IngressDeployment, ScenesDeployment


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
        return ApplicationDeployment.bind(config)
    return IngressDeployment.bind(config, FusionDeployment.bind(config), ScenesDeployment.bind(config))


def check_models(config: ServingConfig) -> None:
    """Refuses here, with the cause, what every replica would refuse behind Serve's own message.

    Raises:
        InvalidFieldError: the models directory lacks something, a bundle does not verify, or two do not fit.
    """
    try:
        pointer = read_pointer(config.models)
        if pointer.fusion is None:  # A scorer may be absent: clients then bring their own predictions.
            raise BundleError("current.json: fusion is null")
        Contract(config.supplements).choose(paths_of(pointer, config.models), None)
    except BundleError as error:
        allowed = f"a directory that `recfuse explore`, `recfuse export` or `make demo` wrote ({error})"
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
