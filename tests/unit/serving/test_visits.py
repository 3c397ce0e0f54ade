"""Persons of a world as clients: the whole application in this process, without Ray."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from deltalake import DeltaTable
from starlette.testclient import TestClient

from recfuse.bundle.pointer import Pointer, write_pointer
from recfuse.config import InvalidFieldError
from recfuse.fusion.inference import export_policy
from recfuse.fusion.policies import FixedGaussian
from recfuse.serving.api import create_app
from recfuse.serving.config import ServingConfig
from recfuse.serving.gateway import Backends
from recfuse.serving.mover import Mover
from recfuse.serving.replicas import FusionReplica, ScenesReplica
from recfuse.simulation.rollout import rollout
from recfuse.simulation.visits import Visits, visit
from recfuse.simulation.world import World
from tests.unit.simulation import worlds

WEIGHTS = FixedGaussian([.5, .5, 1, 1, 1, 1], .5)


@pytest.fixture(scope="module")
def world() -> World:
    return worlds.world()


@pytest.fixture
def client(world: World, tmp_path: Path) -> Iterator[httpx.Client]:
    bundle = export_policy(tmp_path / "models", WEIGHTS, world.vocabulary, training={}, data_fingerprint="", metrics={})
    write_pointer(tmp_path / "models", Pointer(fusion=bundle.name))
    config = ServingConfig(models=str(tmp_path / "models"), decision_log=str(tmp_path / "log"), poll_seconds=0)
    fusion, scenes = FusionReplica(config), ScenesReplica(config)
    yield TestClient(create_app(Backends(fusion, scenes), config))
    fusion.close()
    scenes.close()


def test_what_was_played_is_what_was_logged(world: World, client: httpx.Client, tmp_path: Path) -> None:
    played = visit(world, client, requests=90, persons=30, seed=5)
    assert (played.requests, len(set(played.request_ids))) == (90, 90)
    mover = Mover(tmp_path / "log", tmp_path / "table", world.vocabulary, window_seconds=60,
                  models=tmp_path / "models")
    assert mover.move(now=time.time() + 1_000).written == 90

    rows = DeltaTable(tmp_path / "table" / "sessions").to_pyarrow_table().to_pylist()
    assert {row["request_id"] for row in rows} == set(played.request_ids)
    sums = [sum(row["feedback"][name] for row in rows) for name in world.vocabulary.behaviour_names]
    np.testing.assert_allclose(sums, played.feedback, rtol=1e-5)
    assert sum(row["last"] for row in rows) == played.sessions
    assert len({row["user_id"] for row in rows}) == 30


def test_without_exploration_the_lives_are_those_of_a_simulation(world: World, client: httpx.Client) -> None:
    """First requests of the same persons, under the means of the same policy."""
    played = visit(world, client, requests=40, persons=40, seed=5, explore=False)

    class Mean:
        def act(self, state: np.ndarray, explore: bool, rng: np.random.Generator) -> object:
            return WEIGHTS.act(state, False, rng)

    lives = rollout(world, Mean(), seed=5, persons=np.arange(40))  # type: ignore[arg-type]
    first = (lives.number == 0) & (lives.request == 0)
    order = [("watch_time", "click", "long_view", "like", "comment", "forward", "follow", "hate").index(name)
             for name in world.vocabulary.behaviour_names]
    np.testing.assert_allclose(lives.feedback[first].sum(0)[order], played.feedback, rtol=1e-5)


@pytest.mark.parametrize(("changes", "field"), [({"requests": 0}, "requests"), ({"persons": 0}, "persons")])
def test_nothing_to_play_is_refused(world: World, client: httpx.Client, changes: dict[str, int], field: str) -> None:
    with pytest.raises(InvalidFieldError, match=field):
        visit(world, client, **{"requests": 1, "persons": 1, "seed": 0, **changes})


def test_equal_seeds_play_alike(world: World, client: httpx.Client) -> None:
    first, again = (visit(world, client, requests=20, persons=10, seed=3, explore=False) for _ in range(2))
    assert isinstance(first, Visits)
    np.testing.assert_array_equal(first.feedback, again.feedback)
    assert first.sessions == again.sessions
