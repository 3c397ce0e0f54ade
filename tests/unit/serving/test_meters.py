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
from recfuse.serving.config import ServingConfig
from recfuse.serving.decision_log import DecisionLog
from recfuse.serving.formats import Body
from recfuse.serving.fusion import FusionModel, FusionService
from recfuse.serving.meters import METERS, LocalMeters
from recfuse.serving.models import FixedModel


class Recorded:
    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def record(self, name: str, value: float, tags: Mapping[str, str] | None = None) -> None:
        self.values.setdefault(name, []).append(value)


def test_a_decision_is_timed_and_described(models: Path, tmp_path: Path) -> None:
    meters, log = Recorded(), DecisionLog(tmp_path / "log")
    model = FusionModel(FusionActor.from_bundle(read_bundle(models / str(read_pointer(models).fusion))))
    service = FusionService(ServingConfig(explore=False), FixedModel(model), log, meters=meters)
    body = {"user_id": "u", "candidates": {"item_id": [1, 2], "predictions": {"click": [.1, .2], "long_view": [1, 2]}}}
    asyncio.run(service.rank("fine", Body(orjson.dumps(body))))
    log.close()
    assert set(meters.values) <= set(METERS)
    assert meters.values["recfuse_candidates"] == [2]
    assert meters.values["recfuse_action_distance"] == [0.0]
    assert meters.values["recfuse_default_states"] == [1.0]
    assert all(meters.values[f"recfuse_{part}_ms"][0] > 0 for part in ("decode", "policy", "log", "encode", "request"))


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
    shown = set(re.findall(r"ray_(recfuse_[a-z_]+?)(?:_bucket_total|_sum_total|_total)?\b(?!_)", queries))
    assert shown == set(METERS)


def test_local_meters_hand_on_what_prometheus_would_keep() -> None:
    """Candidates 1, 3, 2000 and then 5: cumulative buckets le 1, 10, …, 1000, 5000 and +Inf by hand."""
    handed: dict[tuple[str, str], float] = {}

    def add(metric: str, value: float, tags: Mapping[str, str]) -> None:
        key = (metric, tags.get("le", ""))
        handed[key] = handed.get(key, 0.0) + value

    gauges: dict[str, float] = {}
    meters = LocalMeters(add, lambda name, value, _: gauges.__setitem__(name, value), seconds=0)
    for values in ((1, 3, 2000), (5,), ()):
        for value in values:
            meters.record("recfuse_candidates", value, {"endpoint": "fusion"})
        meters.record("recfuse_feedback", 1.0)
        meters.record("recfuse_log_lag_s", len(values))
        meters.flush()
    buckets = {le: count for (name, le), count in handed.items() if name == "recfuse_candidates_bucket"}
    assert buckets == {"1": 1, "10": 3, "50": 3, "100": 3, "200": 3, "500": 3, "1000": 3, "5000": 4, "+Inf": 4}
    assert handed["recfuse_candidates_sum", ""] == 2009
    assert handed["recfuse_feedback", ""] == 3
    assert gauges == {"recfuse_log_lag_s": 0}
