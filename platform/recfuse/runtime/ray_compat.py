"""What we do to Ray 2.60 beyond its documented interface: every trick in one place.

Each function says in its docstring why it is there (Why), where upstream speaks of it (Upstream, issues and pull
requests of ray-project/ray), what a user sees when it stops working (Broken), and which test fails when it no longer
works or is no longer needed (Test). Ray itself is imported where a trick is done, so that constants and environments
can be had without it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LOOPBACK = "127.0.0.1"
# Its name says where Ray itself uses it: there the servers of a local Ray listen on loopback alone.
_LOCAL_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_NO_BARS = "RAY_DATA_DISABLE_PROGRESS_BARS"
_CHATTY = ("ray.rllib", "ray.data", "ray.tune", "ray.train", "ray._common.deprecation",
           "ray._private.authentication.authentication_token_setup")
_WORKERS_START = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
_WORKERS_START_SECONDS = 600


@contextmanager
def on_loopback() -> Iterator[None]:
    """Inside, a Ray that is started with `_node_ip_address=LOOPBACK` listens on loopback alone.

    Why: on Linux Ray takes the machine's own address where it is given loopback, and its servers, which run the code
        that they are sent, then listen there. On Windows and macOS it does not; this makes it believe to be there. The
        variable is for the processes that Ray starts, the constant for this one, which has read the variable.
    Upstream: #26293 (`--node-ip-address=127.0.0.1` is ignored, closed as intended); the switch came with #31166.
    Broken: anyone in the network of a user's machine can run code on it.
    Test: tests/unit/runtime/test_ray_compat.py, tests/integration/test_cluster.py.
    """
    from ray._private import ray_constants

    before, enabled = os.environ.get(_LOCAL_ONLY), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[_LOCAL_ONLY], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = enabled
        if before is None:
            del os.environ[_LOCAL_ONLY]
        else:
            os.environ[_LOCAL_ONLY] = before


def start_local(logging_level: int = logging.WARNING, **options: Any) -> None:
    """Starts a Ray for this process alone, on loopback, without dashboard; `options` are those of `ray.init`.

    Why: see `on_loopback`. The dashboard answers whoever reaches it, and nobody asked for one; the workers' lines would
        stand among the job's own.
    Upstream: #26293.
    Broken: see `on_loopback`.
    Test: tests/integration/test_cluster.py.
    """
    import ray

    for name, value in (starting_environment() | idle_environment()).items():
        os.environ.setdefault(name, value)
    with on_loopback():
        ray.init(address="local", _node_ip_address=LOOPBACK, include_dashboard=False, log_to_driver=False,
                 logging_level=logging_level, **options)


def silence() -> None:
    """Ray's libraries log errors alone from now on.

    Why: RLlib, Data, Tune and Train announce at every start and at every execution of a dataset what we chose on
        purpose, warn of deprecations among their own modules, and say where the token of a cluster lies.
    Upstream: #45846 (RLlib's deprecation warnings cannot be turned off, open), #39846.
    Broken: a job's log holds dozens of lines that are not ours.
    Test: tests/unit/runtime/test_ray_compat.py.
    """
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, Ray's libraries log errors alone.

    Why: see `silence`; the caller's process may want their lines elsewhere.
    Upstream: #45846, #39846.
    Broken: a job's log holds dozens of lines that are not ours.
    Test: tests/unit/runtime/test_ray_compat.py.
    """
    loggers = [logging.getLogger(name) for name in _CHATTY]
    before = [each.level for each in loggers]
    silence()
    try:
        yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)


def no_progress_bars() -> None:
    """Ray Data draws no progress bars from now on, neither here nor in the processes that a local Ray starts.

    Why: they tear our own lines apart on a terminal, and fill a job's log elsewhere. The variable is read when
        `ray.data` is imported, which may have happened, so that the context is told as well.
    Upstream: #57734 (bars spam terminals that are none), #44267 (the variable leaves some, closed).
    Broken: bars between the lines of a job; nothing else.
    Test: tests/unit/runtime/test_ray_compat.py.
    """
    import ray.data

    os.environ.setdefault(_NO_BARS, "1")
    ray.data.DataContext.get_current().enable_progress_bars = False


@contextmanager
def older_parquet_reader() -> Iterator[None]:
    """Inside, `ray.data.read_parquet` takes the reader that it had before 2.60.

    Why: the newer one hands over its first batch when it has read everything: 3 to 14 s for 86,205 samples where the
        older one took .3.
    Upstream: the newer one became the default with #63326; no upstream issue known of the late first batch.
    Broken: the first pass of a training starts seconds to minutes later, and samples must fit the object store.
    Test: tests/unit/runtime/test_ray_compat.py.
    """
    import ray.data

    context = ray.data.DataContext.get_current()
    before, context.use_datasource_v2 = context.use_datasource_v2, False
    try:
        yield
    finally:
        context.use_datasource_v2 = before


def free_resources() -> dict[str, dict[str, float]]:
    """Node → resource → how much of it nobody holds.

    Why: Ray's interface adds the nodes up, and what is free on two of them holds no learner that needs it on one.
    Upstream: no upstream issue known; Ray counts as a developer's interface what lies in a module of its own.
    Broken: learners are placed by what nodes have in all, and wait where others hold it.
    Test: tests/integration/test_machines.py.
    """
    import ray._private.state

    return dict(ray._private.state.available_resources_per_node())


def may_grow() -> bool:
    """Whether an autoscaler may bring nodes that are not there yet.

    Why: what fits on no node may be what a node is started for, so that refusing it would be wrong.
    Upstream: no upstream issue known; Ray Data asks in the same way how large a cluster may become.
    Broken: a job is refused on a cluster that is still empty, or waits to its limit on one that does not grow.
    Test: tests/integration/test_machines.py.
    """
    import ray._private.state

    return ray._private.state.state.get_max_resources_from_cluster_config() is not None


def unmet_requests() -> list[tuple[int, dict[str, float]]]:
    """(how many, resources of one) of the tasks, actors and groups that wait for a place.

    Why: `ray status` shows them; without a dashboard no public function does.
    Upstream: no upstream issue known.
    Broken: a job that stands still cannot say what it waits for.
    Test: tests/integration/test_machines.py.
    """
    import ray._raylet
    from ray.autoscaler.v2.sdk import get_cluster_resource_state

    state = get_cluster_resource_state(ray._raylet.GcsClient(ray.get_runtime_context().gcs_address))
    single = [(each.count, dict(each.request.resources_bundle)) for each in state.pending_resource_requests]
    bundles = [dict(request.resources_bundle) for group in state.pending_gang_resource_requests
               for request in group.requests]
    return single + [(bundles.count(bundle), bundle) for number, bundle in enumerate(bundles)
                     if bundle not in bundles[:number]]


def bind_gloo() -> None:
    """Gloo in this worker listens where Ray knows the node, unless GLOO_SOCKET_IFNAME is set.

    Why: it takes the interface that the host's name resolves to. On many machines that is loopback or nothing, and the
        workers of other nodes never reach it.
    Upstream: no upstream issue known; torch documents the variable for such machines.
    Broken: several learners on several nodes fail with "connectFullMesh failed", attempt after attempt.
    Test: tests/unit/runtime/test_ray_compat.py, tests/opt_in/test_machines.py.
    """
    import ray

    from recfuse.runtime.placement import interface_of

    interface = interface_of(ray.util.get_node_ip_address())
    if interface:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def torch_config() -> Any:
    """The TorchConfig of Ray Train whose workers call `bind_gloo` before they connect.

    Why: see `bind_gloo`; the workers of Ray Train connect before any code of ours runs in them.
    Upstream: no upstream issue known.
    Broken: see `bind_gloo`.
    Test: tests/unit/runtime/test_ray_compat.py, tests/opt_in/test_machines.py.
    """
    from ray.train.torch import TorchConfig
    from ray.train.torch.config import _TorchBackend

    class BoundBackend(_TorchBackend):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(bind_gloo)
            super().on_start(worker_group, backend_config)

    class BoundConfig(TorchConfig):
        @property
        def backend_cls(self) -> type:
            return BoundBackend

    return BoundConfig()


def end_learners(group: Any) -> None:
    """Kills every learner of a LearnerGroup of RLlib, so that a call that waits for them fails at once.

    Why: a learner whose peer's node is gone waits in Gloo for half an hour, and RLlib for all learners.
    Upstream: no upstream issue known; the group lists its actors nowhere else.
    Broken: training goes on half an hour after a node was lost.
    Test: tests/unit/runtime/test_ray_compat.py, tests/opt_in/test_machines.py.
    """
    import ray

    for actor in group._workers or ():
        ray.kill(actor)


@contextmanager
def devices_without_ray() -> Iterator[None]:
    """Inside, a learner of RLlib in this process takes its GPU without starting a Ray.

    Why: RLlib asks Ray which GPUs this process was given. Without a Ray that question starts one, with every default:
        a dashboard, all CPUs, on the machine's own address. The answer is not used in a process that is no worker.
    Upstream: no upstream issue known; #17444 mended the same question in RLlib's older stack.
    Broken: a learner in process starts a Ray on machines with a GPU; it learns the same.
    Test: tests/unit/runtime/test_ray_compat.py.
    """
    import ray
    import torch
    from ray.air._internal import torch_utils

    before = torch_utils.get_devices
    torch_utils.get_devices = lambda: before() if ray.is_initialized() else [torch.device("cpu")]
    try:
        yield
    finally:
        torch_utils.get_devices = before


def patient_start() -> None:
    """Ray Train's workers have ten minutes to start, unless the user has said how long.

    Why: they import torch and Ray; on a busy machine Ray's own limit is too short for that.
    Upstream: #60376 (raised from 30 s to 60 s).
    Broken: training with workers ends with WorkerGroupStartupTimeoutError on a busy machine.
    Test: tests/unit/runtime/test_ray_compat.py.
    """
    os.environ.setdefault(_WORKERS_START, str(_WORKERS_START_SECONDS))


def torch_trainer(*arguments: Any, **options: Any) -> Any:
    """A TorchTrainer of Ray Train that leaves Ctrl-C alone: an interrupt ends the driver's Ray, and that the workers.

    Why: Ray's handler outlives the training and ends the process, later steps too, with code 1 (or 0) and no word.
    Upstream: the handler came with #53600 and #54188; no upstream issue known of its outliving the training.
    Broken: a job that is interrupted after a training with workers ends as if it had failed, or had finished.
    Test: tests/unit/runtime/test_ray_compat.py, tests/integration/test_demo.py.
    """
    import ray.train.torch

    class InterruptibleTrainer(ray.train.torch.TorchTrainer):
        def _register_sigint_handler(self, controller: Any) -> None:
            return None

    return InterruptibleTrainer(*arguments, **options)


def prepare_tune() -> None:
    """Tune writes and prints nothing beside our ledger, and takes reports without the metric; users' own values stay.

    Why: by default it writes three files a trial with a line per report; its newer output prints every trial's result
        whatever `verbose` says; and a trial, which is judged at its end, fails with its first report before that.
    Upstream: #48683 (the loggers are on or off together, open), #34786 and #35129 (the newer output), #15876 (reports
        without the metric).
    Broken: `result.json`, `progress.csv` and event files beside the ledger; a screen of results per trial; or every
        trial fails with "did not include the specified metric".
    Test: tests/unit/runtime/test_ray_compat.py, tests/integration/test_sweep.py.
    """
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")


def keep_replica_on_loopback() -> None:
    """Called in a replica's constructor: the port that Serve opens afterwards for other deployments is on loopback.

    On nodes with an address of their own it is left as Ray has it: other nodes must reach it.

    Why: Serve opens it on every interface whatever the node's address, and unpickles what it is sent.
    Upstream: it came with #59908; #64544 (open) speaks of its port, no upstream issue known of its address.
    Broken: anyone in the network of a user's machine can run code on it; or, where Serve binds otherwise, replicas fail
        to start with an AttributeError.
    Test: tests/unit/runtime/test_ray_compat.py, tests/integration/test_serving.py.
    """
    import ray
    from ray.serve._private import replica

    if ray.util.get_node_ip_address() != LOOPBACK:
        return
    bind = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: bind(server, address.replace("[::]", LOOPBACK))


def starting_environment() -> dict[str, str]:
    """Variable → value with which Serve's proxy answers 503 "starting" before an application is there.

    Why: it answers 404 until it knows a route, and then lets requests wait for a replica until they time out.
    Upstream: no upstream issue known; the callback is documented for the proxy's middleware.
    Broken: a client that comes too soon gets 404, or waits; or the proxy does not start where it cannot import recfuse.
    Test: tests/integration/test_serving.py.
    """
    return {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "recfuse.serving.starting:middlewares",
            # A proxy has 5 seconds else, and Serve ends with it: on a busy machine its imports take longer.
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
            # Else HAProxy wants the port for itself, where `recfuse.serving.starting` listens before it.
            "SERVE_SOCKET_REUSE_PORT_ENABLED": "1"}


def idle_environment() -> dict[str, str]:
    """Variable → value with which a Ray keeps a worker for a minute after its last task.

    Why: it ends workers beyond one a CPU after a second without work. Where tasks of a pipeline follow each other, or
        actors take no CPU, workers end and start all the time, and each start costs two seconds of imports: five of the
        six seconds that a small ingest took.
    Upstream: #27863 (closed), #36766 (made it rarer).
    Broken: jobs take seconds longer.
    Test: tests/integration/test_cluster.py.
    """
    return {"RAY_idle_worker_killing_time_threshold_ms": "60000"}


def serve_environment(haproxy: str) -> dict[str, str]:
    """Variable → value that Serve must be started with to answer fast through HAProxy, on loopback alone.

    Args:
        haproxy: the script that corrects the configuration which Ray writes and then starts the real HAProxy.

    Why: Serve's own proxy, in Python, makes half of the requests a second. HAProxy as Ray sets it up binds its
        statistics and metrics to every interface, which no option changes; has each replica watch every request with
        two tasks; writes a line a request; and reads a large body in many pieces.
    Upstream: HAProxy came with #60586; #62976 shows `bind *` for the statistics (closed: the port can be chosen), no
        upstream issue known of the address.
    Broken: the script's replacements find nothing, so that ports 8404 and 9101 are open to the network, or admission
        moves from HAProxy into the replicas; answers stay right.
    Test: tests/unit/serving/test_environment.py, tests/integration/test_serving.py.
    """
    return {
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        # A body of 1,000 candidates passes whole, not in pieces of 16 KiB that the replica reads one by one.
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "131072",
        # Else HAProxy sends a line a request to a Python process that counts; the replicas count as well.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        # Bounds a request in place of a task and a timer in the replica.
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": "10",
        # Long enough for HAProxy to hear that a replica ends; Ray's 30 s are for load balancers outside.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
        "RAY_SERVE_HAPROXY_BINARY_PATH": haproxy,
        **starting_environment(),
    }
