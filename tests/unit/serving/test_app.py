"""What the Serve application is built of, without starting Ray."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
import yaml

from recfuse.behaviours import Vocabulary
from recfuse.bundle.pointer import Pointer, write_pointer
from recfuse.config import InvalidFieldError
from recfuse.serving import app as module
from recfuse.serving.app import build_app
from recfuse.serving.config import CONFIG_VARIABLE, ServingConfig
from recfuse.serving.deployments import ApplicationDeployment

from .conftest import write_policy

ROOT = Path(__file__).parents[3]


def test_what_the_models_directory_lacks_is_said(tmp_path: Path, vocabulary: Vocabulary) -> None:
    def refusal() -> str:
        with pytest.raises(InvalidFieldError) as error:
            build_app({"models": str(tmp_path)})
        return str(error.value)

    assert "current.json" in refusal()
    assert "make demo" in refusal()
    bundle = write_policy(tmp_path, vocabulary, seed=1)
    write_pointer(tmp_path, Pointer())
    assert "fusion is null" in refusal()
    write_pointer(tmp_path, Pointer(fusion=bundle.name))
    build_app({"models": str(tmp_path)})  # no scorer is needed
    (bundle / "policy.safetensors").write_bytes(b"")
    assert "SHA-256" in refusal()


def test_serve_run_shows_the_cause_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "serving.yaml"
    config.write_text(f"models: {tmp_path}/nowhere\n")
    monkeypatch.setenv(CONFIG_VARIABLE, str(config))
    with pytest.raises(click.ClickException, match=r"nowhere/current\.json"):
        _ = module.app
    with pytest.raises(AttributeError, match="apples"):
        _ = module.apples


def test_the_yaml_of_serve_fits_the_config() -> None:
    """The args are those of ServingConfig, and the deployments those of its layout."""
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(yaml.safe_load((ROOT / "serving" / "config.yaml").read_text()))
    assert schema.http_options.host == "127.0.0.1"
    [application] = schema.applications
    config = ServingConfig(**application.args)
    assert config.layout == "together"
    assert [deployment.name for deployment in application.deployments] == [ApplicationDeployment.name]
