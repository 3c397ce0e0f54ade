"""The loop on real Ray: what was served, in parts; and a cycle that learns a candidate and begins its canary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import served_logs
import session_logs
import yaml

from recfuse.bundle.pointer import Pointer, read_pointer, write_pointer
from recfuse.evaluation import served
from recfuse.evaluation.config import Targets
from recfuse.evaluation.served import Split, read_served
from recfuse.fusion.inference import export_policy
from recfuse.fusion.policies import FixedGaussian
from recfuse.jobs.loop import cycles_of
from recfuse.logs.source import open_log
from recfuse.rollout.config import LoopConfig, Plan
from recfuse.rollout.store import Store


def test_a_served_log_is_the_same_on_ray(local_ray, tmp_path: Path, monkeypatch) -> None:
    log = served_logs.write(tmp_path / "log", served_logs.Traffic(users=500).table(), 600)
    begin, day = served_logs.BEGIN * 1_000_000, 86_400_000_000
    split = Split(base=served_logs.BASE, canary=served_logs.CANARY, share=.5, begin=begin, end=begin + 3 * day,
                  known_from=begin - day, known_until=begin)
    here = read_served(open_log(log), split)
    monkeypatch.setattr(served, "_FEW_ROWS", 0)
    monkeypatch.setattr(served, "_PARTITION_ROWS", 150)  # many more partitions than tasks
    there = read_served(open_log(log), split)
    assert (there.decisions, there.last, there.measures) == (here.decisions, here.last, here.measures)
    for one, other in zip((*there.arms, *there.halves), (*here.arms, *here.halves), strict=True):
        assert one.count == other.count
        np.testing.assert_allclose(one.scatter, other.scatter, rtol=1e-6, atol=1e-6)


def logged(directory: Path, base: str, rows: int = 3_000, users: int = 300) -> str:
    """Requests of a standard normal policy whose first action is liked."""
    rng, made = np.random.default_rng(0), []
    for number in range(rows):
        action = rng.standard_normal(2).astype(np.float32)
        made.append(session_logs.row(
            number, user=f"u{number % users}", session=f"s{number // 3}", action=action.astype(float).tolist(),
            action_logp=None, model_version=base, last=number % 3 == 2,
            feedback={"watch_time": float(rng.gamma(2.0) + max(action[0], 0)), "like": float(rng.random() < .3)}))
    return str(session_logs.write(directory, session_logs.table(made)))


def test_a_cycle_learns_gates_and_begins_a_canary(local_ray, tmp_path: Path) -> None:
    models = tmp_path / "models"
    base = export_policy(models, FixedGaussian([0.0, 0.0], 1.0), session_logs.vocabulary(), training={},
                         data_fingerprint="", metrics={})
    write_pointer(models, Pointer(fusion=base.name))
    log = logged(tmp_path / "log", base.name)
    training = tmp_path / "training.yaml"
    training.write_text(yaml.safe_dump({"learning": {
        "algorithm": "behaviour_cloning", "cloning": {"iterations": 2}, "network": {"hidden": [8]}}}))
    plan = Plan(logs=log, targets=Targets(goals={"watch_time": 0.0}, floors={"watch_time": -.5}))
    config = LoopConfig(models=str(models), decision_log="", output=str(tmp_path / "loop"), training=str(training),
                        plan=plan)
    first = cycles_of(config).run()
    assert list(first.done) == ["ingest", "split", "train", "candidate", "verdict"]
    rollout = Store(models).read()
    assert (rollout.state, rollout.candidate) == ("canary", first.done["train"]), first.done
    assert read_pointer(models) == Pointer(fusion=base.name, fusion_canary=rollout.candidate, canary_share=.01)
    gate = next(row for row in Store(models).audit() if row.who == "gate").figures
    assert {"vocabulary", "serving against the network", "support of the log", "mean ratio of densities"} <= set(gate)
    assert any(check.startswith("lower end of watch_time") for check in gate)
    assert "nothing that was served at this share has been collected" in first.done["verdict"]
    # The users that judge train nothing, and samples say who decided.
    split = tmp_path / "loop" / "cycle-00001" / "split"
    users = {name: set(pq.read_table(split / name / "part-00000.parquet")["user_id"].to_pylist())
             for name in ("learn", "judge")}
    assert not users["learn"] & users["judge"]
    assert set(pq.read_table(split / "learn" / "part-00000.parquet")["model_version"].to_pylist()) == {base.name}
    # While the candidate is under way there is none other.
    second = cycles_of(config).run()
    assert list(second.done) == ["verdict"]
