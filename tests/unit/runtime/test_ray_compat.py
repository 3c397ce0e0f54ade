"""What we do to Ray: each trick works, and is still needed. No Ray is started here.

A test that fails after an upgrade of Ray says which: where the need is gone, the trick goes.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
import ray
import ray.data
import ray.train.torch

from recfuse.runtime import ray_compat

ROOT = Path(__file__).parents[3]
TRICKS = [function for name, function in inspect.getmembers(ray_compat, inspect.isfunction)
          if function.__module__ == ray_compat.__name__ and not name.startswith("_")]


@pytest.mark.parametrize("trick", TRICKS, ids=lambda trick: trick.__name__)
def test_a_trick_says_why_where_upstream_what_breaks_and_who_watches(trick):
    text = inspect.getdoc(trick)
    for heading in ("Why: ", "Upstream: ", "Broken: ", "Test: "):
        assert f"\n{heading}" in text, f"{trick.__name__} lacks {heading!r}"
    assert re.search(r"#\d{4,5}\b", text) or "no upstream issue known" in text
    watched = re.findall(r"tests/[\w/]+\.py", text)
    assert watched
    assert all((ROOT / path).is_file() for path in watched)


def test_the_product_reaches_below_rays_interface_in_one_file():
    """Tests may look at what Ray started, and say what they need of it."""
    files = [file for room in ("platform", "serving", "tune", "jobs", "benchmarks")
             for file in (ROOT / room).rglob("*.py") if file.name != "ray_compat.py"]
    private = re.compile(r"\bray(\.\w+)*\._[a-z]|\bfrom ray(\.\w+)* import _|use_datasource_v2|_node_ip_address="
                         r"|\bfrom ray(\.\w+)*\._|environ.*\b(RAY_(?!ADDRESS|SERVE_HAPROXY_)|TUNE_)")
    found = {f"{file.relative_to(ROOT)}: {line.strip()}" for file in files for line in file.read_text().splitlines()
             if private.search(line)}
    assert not found


def test_a_ray_given_loopback_stays_there(monkeypatch):
    from ray._private import ray_constants, services

    monkeypatch.setattr(services, "node_ip_address_from_perspective", lambda address=None: "10.0.0.7")
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    monkeypatch.delenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", raising=False)
    assert services.resolve_ip_for_localhost(ray_compat.LOOPBACK) == "10.0.0.7", "no longer needed"
    with ray_compat.on_loopback():
        assert services.resolve_ip_for_localhost(ray_compat.LOOPBACK) == ray_compat.LOOPBACK
        assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert ray_constants.ENABLE_RAY_CLUSTER is True
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in os.environ


def test_quiet_and_loud_again():
    log = logging.getLogger("ray.data")
    before = log.level
    with ray_compat.quiet():
        ray_compat.silence()
        assert log.level == logging.getLogger("ray.rllib").level == logging.ERROR
    assert log.level == before
    import ray._private.authentication.authentication_token_setup as setup

    assert setup.logger.name in ray_compat._CHATTY, "the name of the logger has changed"


def test_there_are_no_bars_even_where_ray_data_was_imported_before():
    code = ("import ray.data\nfrom recfuse.runtime import ray_compat\n"
            "context = ray.data.DataContext.get_current\nbefore = context().enable_progress_bars\n"
            "ray_compat.no_progress_bars()\nprint(before, context().enable_progress_bars)")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_DATA_DISABLE_PROGRESS_BARS"}
    done = subprocess.run([sys.executable, "-c", code], env=environment | {"PYTHONPATH": str(ROOT / "platform")},
                          capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"], "the first is the need, the second the trick"


def test_the_older_reader_inside_and_the_newer_outside(monkeypatch):
    assert ray.data.context.DEFAULT_USE_DATASOURCE_V2, "no longer needed"
    context = ray.data.DataContext.get_current()
    monkeypatch.setattr(context, "use_datasource_v2", True)
    with ray_compat.older_parquet_reader():
        assert not ray.data.DataContext.get_current().use_datasource_v2
    assert context.use_datasource_v2


def test_a_learner_in_process_takes_its_gpu_without_a_ray(monkeypatch):
    from ray.rllib.utils import framework

    class RayStartedError(Exception):
        pass

    def start(*arguments, **options):
        raise RayStartedError

    one_gpu = types.SimpleNamespace(cuda=types.SimpleNamespace(device_count=lambda: 1), device=lambda name: name)
    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(framework, "try_import_torch", lambda: (one_gpu, None))
    config = types.SimpleNamespace(framework_str="torch", local_gpu_idx=0)
    with pytest.raises(RayStartedError):  # otherwise no longer needed
        framework.get_device(config, 1)
    with ray_compat.devices_without_ray():
        assert framework.get_device(config, 1) == 0
        assert framework.get_device(config, 0) == "cpu"
    assert not ray.is_initialized()


@pytest.mark.parametrize(("address", "before", "after"), [
    ("127.0.0.1", None, "lo"), ("127.0.0.1", "eth7", "eth7"), ("203.0.113.7", None, None)])
def test_gloo_listens_where_ray_knows_the_node(monkeypatch, address, before, after):
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: address)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", before or "")  # so that it is put back
    if before is None:
        del os.environ["GLOO_SOCKET_IFNAME"]
    ray_compat.bind_gloo()
    assert os.environ.get("GLOO_SOCKET_IFNAME") == after


def test_workers_of_ray_train_bind_before_they_connect(monkeypatch):
    from ray.train.torch.config import _TorchBackend

    calls = []
    monkeypatch.setattr(_TorchBackend, "on_start", lambda self, group, config: calls.append("connect"))
    config = ray.cloudpickle.loads(ray.cloudpickle.dumps(ray_compat.torch_config()))
    assert isinstance(config, ray.train.torch.TorchConfig)
    config.backend_cls().on_start(types.SimpleNamespace(execute=lambda call: calls.append(call.__name__)), config)
    assert calls == ["bind_gloo", "connect"]


def test_the_learners_of_a_group_are_killed(monkeypatch):
    killed = []
    monkeypatch.setattr(ray, "kill", killed.append)
    ray_compat.end_learners(types.SimpleNamespace(_workers=["a", "b"]))
    ray_compat.end_learners(types.SimpleNamespace(_workers=None))
    assert killed == ["a", "b"]


def test_workers_of_ray_train_have_time_to_start(monkeypatch):
    from ray.train.v2._internal import constants

    name = constants.WORKER_GROUP_START_TIMEOUT_S_ENV_VAR
    assert constants.DEFAULT_WORKER_GROUP_START_TIMEOUT_S < 600, "no longer needed"
    monkeypatch.setenv(name, "5")
    ray_compat.patient_start()
    assert os.environ[name] == "5", "what the user says holds"
    monkeypatch.delenv(name)
    ray_compat.patient_start()
    assert os.environ[name] == "600"


def test_ray_train_leaves_ctrl_c_alone():
    before = signal.getsignal(signal.SIGINT)
    try:
        ours = ray_compat.torch_trainer(lambda: None, scaling_config=ray.train.ScalingConfig(num_workers=1))
        ours._register_sigint_handler(None)
        assert signal.getsignal(signal.SIGINT) is before
        theirs = ray.train.torch.TorchTrainer(lambda: None, scaling_config=ray.train.ScalingConfig(num_workers=1))
        theirs._register_sigint_handler(None)
        assert signal.getsignal(signal.SIGINT) is not before, "no longer needed"
    finally:
        signal.signal(signal.SIGINT, before)


def test_tune_writes_and_prints_nothing_and_waits_for_the_metric(monkeypatch):
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experimental.output import get_air_verbosity
    from ray.tune.logger import CSVLoggerCallback
    from ray.tune.utils.callback import _create_default_callbacks

    def writes() -> bool:
        made = _create_default_callbacks([], air_verbosity=None)
        return any(isinstance(callback, CSVLoggerCallback) for callback in made)

    def judge() -> None:
        metric = types.SimpleNamespace(metric="worth")
        controller = types.SimpleNamespace(_metric="worth", _scheduler_alg=metric, _search_alg=metric)
        TuneController._validate_result_metrics(controller, {"loss": 1.0, "passes": 1})

    names = ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "RAY_AIR_NEW_OUTPUT", "TUNE_DISABLE_STRICT_METRIC_CHECKING")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert writes()
    assert get_air_verbosity(0) is not None, "no longer needed"
    with pytest.raises(ValueError, match="worth"):
        judge()
    for name in names:
        monkeypatch.setenv(name, "")  # so that they are removed again
        del os.environ[name]
    ray_compat.prepare_tune()
    assert not writes()
    assert get_air_verbosity(0) is None
    judge()
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "1")
    ray_compat.prepare_tune()
    assert os.environ["RAY_AIR_NEW_OUTPUT"] == "1", "what the user says holds"


@pytest.mark.parametrize(("node", "bound"), [(ray_compat.LOOPBACK, "127.0.0.1:0"), ("10.0.0.7", "[::]:0")])
def test_a_replica_binds_where_its_node_is(monkeypatch, node, bound):
    from ray.serve._private import replica

    assert 'add_port_to_grpc_server(self._server, "[::]:0")' in inspect.getsource(replica), "no longer needed"
    addresses = []
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: node)
    monkeypatch.setattr(replica, "add_port_to_grpc_server", lambda server, address: addresses.append(address))
    ray_compat.keep_replica_on_loopback()
    replica.add_port_to_grpc_server(None, "[::]:0")
    assert addresses == [bound]


def test_serve_knows_every_variable_that_it_is_given():
    import ray.serve._private as private

    sources = "".join(file.read_text() for file in Path(private.__file__).parent.glob("*.py"))
    for name in ray_compat.serve_environment("script"):
        assert f'"{name}"' in sources, f"Serve reads no {name}"
