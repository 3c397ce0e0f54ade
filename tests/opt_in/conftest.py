"""Tests that take minutes, kill processes or load the machine: each runs only where `-m` names its mark."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

MARKS = ("chaos", "cluster", "load", "security", "bench")
ROOT = Path(__file__).parents[2]
os.environ["PYTHONPATH"] = os.pathsep.join(
    [*(str(ROOT / part) for part in ("platform", "tests", "")), os.environ.get("PYTHONPATH", "")])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    asked = [mark for mark in MARKS if mark in config.option.markexpr]
    left_out = [item for item in items
                if here in item.path.parents and not any(item.get_closest_marker(mark) for mark in asked)]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    import ray

    from recfuse.runtime import ray_compat

    ray_compat.start_local(num_cpus=2, object_store_memory=512 << 20)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models directory with untrained models of the default sizes."""
    from benchmarks.serving import write_models

    root = tmp_path_factory.mktemp("models")
    write_models(root)
    return root


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Shows a line of figures, also of a test that passes."""
    plugins = request.config.pluginmanager
    reporter, capture = plugins.get_plugin("terminalreporter"), plugins.get_plugin("capturemanager")

    def write(text: str) -> None:
        with capture.global_and_fixture_disabled():
            reporter.write_line(f"\n{text}")
    return write


def seconds(default: float) -> float:
    """How long a test loads the server: RECFUSE_TEST_SECONDS, or this."""
    return float(os.environ.get("RECFUSE_TEST_SECONDS", default))
