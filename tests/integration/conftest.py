"""One local Ray for all modules of integration tests that do not start their own: each start, and each first task of a
worker, costs seconds."""

from __future__ import annotations

import os
import time

import pytest
import torch

# On small matrices two threads spend more time waiting for each other than they save.
torch.set_num_threads(1)
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
# Workers import `recfuse` and unpickle functions of the test modules.
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
os.environ["PYTHONPATH"] = os.pathsep.join(os.path.join(ROOT, part) for part in ("platform", "tests", ""))


OWN_RAY = ("test_cluster", "test_machines", "test_demo", "test_job_submit", "test_serving", "test_tutorial")


@pytest.fixture(scope="module")
def local_ray():
    import ray

    from recfuse.runtime import ray_compat

    if not ray.is_initialized():
        ray_compat.start_local(num_cpus=2, object_store_memory=512 << 20)
    yield
    if not _is_free():
        ray.shutdown()


@pytest.fixture(scope="module", autouse=True)
def no_ray_of_others(request):
    """A module that starts Rays of its own finds none: some ports are fixed."""
    import ray

    if request.module.__name__.rpartition(".")[2] in OWN_RAY:
        ray.shutdown()


def _is_free() -> bool:
    """Whether all CPUs come back, within seconds: a module's actors would take them from the next one."""
    import ray

    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if ray.available_resources().get("CPU") == ray.cluster_resources().get("CPU"):
            return True
        time.sleep(0.2)
    return False
