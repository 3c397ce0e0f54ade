"""What is measured while serving."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path

import orjson

from recfuse.bundle import read_bundle
from recfuse.bundle.pointer import read_pointer
from recfuse.fusion.inference import FusionActor
from serving.config import ServingConfig
from serving.decision_log import DecisionLog
from serving.fusion import FusionModel, FusionService
from serving.meters import METERS


class Recorded:
    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def record(self, name: str, value: float, tags: Mapping[str, str] | None = None) -> None:
        self.values.setdefault(name, []).append(value)


def test_a_decision_is_timed_and_described(models: Path, tmp_path: Path) -> None:
    meters, log = Recorded(), DecisionLog(tmp_path / "log")
    model = FusionModel(FusionActor.from_bundle(read_bundle(models / str(read_pointer(models).fusion))))
    service = FusionService(ServingConfig(explore=False), log, meters=meters)
    body = {"user_id": "u", "candidates": {"item_id": [1, 2], "predictions": {"click": [.1, .2], "long_view": [1, 2]}}}
    asyncio.run(service.rank(model, "fine", orjson.dumps(body)))
    log.close()
    assert set(meters.values) <= set(METERS)
    assert meters.values["recfuse_candidates"] == [2]
    assert meters.values["recfuse_action_distance"] == [0.0]
    assert meters.values["recfuse_default_states"] == [1.0]
    assert all(meters.values[f"recfuse_{part}_ms"][0] > 0 for part in ("decode", "model", "log"))


def test_names_and_descriptions_are_what_ray_takes() -> None:
    for name, (kind, description, boundaries) in METERS.items():
        assert name.isidentifier()
        assert description.isascii()
        assert (kind == "histogram") == bool(boundaries) == (len(boundaries) > 0)
        assert list(boundaries) == sorted(b for b in boundaries if b > 0)


def test_the_board_shows_every_meter() -> None:
    """And no metric of ours that does not exist."""
    board = orjson.loads((Path(__file__).parents[3] / "serving" / "grafana.json").read_bytes())
    queries = " ".join(target["expr"] for panel in board["panels"] for target in panel["targets"])
    shown = set(re.findall(r"ray_(recfuse_[a-z_]+?)(?:_bucket|_total)\b", queries))
    assert shown == set(METERS)
