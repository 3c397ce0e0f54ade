"""A candidate's way: by what real logs of it say, share by share; and what people do beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import session_logs
from served_logs import BEGIN, DAY, Traffic, write

from recfuse.bundle.pointer import Pointer, read_pointer, write_pointer
from recfuse.config import InvalidFieldError
from recfuse.evaluation.config import Targets
from recfuse.evaluation.verdict import Verdict
from recfuse.fusion.inference import export_policy
from recfuse.fusion.policies import FixedGaussian
from recfuse.jobs import rollout as job
from recfuse.rollout.config import Plan, RolloutConfig
from recfuse.rollout.rollout import judge, next_step, promote, roll_back, start
from recfuse.rollout.store import Store

TARGETS = Targets(goals={"watch_time": 0.0}, floors={"like": -.2}, effect=.2, min_users=50)


@dataclass(frozen=True)
class Site:
    """A models directory that serves `base`, and a log beside it."""

    models: Path
    logs: Path
    base: str
    candidate: Path
    plan: Plan

    def config(self, **changes: object) -> RolloutConfig:
        return RolloutConfig(**{"action": "start", "models": str(self.models), "candidate": str(self.candidate),
                                "plan": self.plan, "who": "tester", **changes})

    def serve(self, number: int, **changes: object) -> float:
        """A day of everybody at the share that the pointer has; returns its end. The first one has three days before
        it."""
        pointer, begin = read_pointer(self.models), BEGIN + number * DAY
        write(self.logs, Traffic(**{
            "users": 2_500, "pace": 5, "days": 1, "before": 0 if number else 3, "seed": number, "base": self.base,
            "canary": pointer.fusion_canary or "nobody", "share": pointer.canary_share, "begin": begin, **changes,
        }).table(), name=f"day-{number}")
        return begin + DAY


@pytest.fixture
def site(tmp_path: Path) -> Site:
    base, candidate = (export_policy(tmp_path / "made", FixedGaussian([mu, mu], 1.0), session_logs.vocabulary(),
                                     training={}, data_fingerprint="", metrics={}) for mu in (0.0, .5))
    models = tmp_path / "models"
    models.mkdir()
    base.rename(models / base.name)
    write_pointer(models, Pointer(fusion=base.name))
    plan = Plan(logs=str(tmp_path / "logs"), targets=TARGETS, shares=(.1, .5), proven_share=.2, settle_seconds=0,
                stage_days=5)
    return Site(models, tmp_path / "logs", base.name, candidate, plan)


def look(*arguments: object) -> tuple[object, object, object]:
    """State, verdict and test of one look."""
    found = judge(*arguments)
    return found.rollout, found.verdict, found.test


def steps(site: Site) -> list[str]:
    return [row.step for row in Store(site.models).audit()]


def test_the_better_is_promoted_share_by_share(site: Site) -> None:
    begun = start(site.config(), BEGIN)
    assert (begun.state, begun.share) == ("canary", .1)
    assert read_pointer(site.models) == Pointer(fusion=site.base, fusion_canary=site.candidate.name, canary_share=.1)
    for number in range(8):
        now = site.serve(number, watch=1.4, like=1.2)
        state, verdict, test = look(str(site.models), now)
        assert test.strays == 0
        if state.state != "canary":
            break
    assert state.state == "promoted"
    assert read_pointer(site.models) == Pointer(fusion=site.candidate.name)
    assert steps(site) == ["candidate → gate", "gate → canary at 0.1", "canary at 0.1 → canary at 0.5",
                           "canary at 0.5 → promoted"]
    rows = Store(site.models).audit()
    assert [row.who for row in rows] == ["tester", "gate", "verdict", "verdict"]
    assert rows[-1].why == verdict.words
    assert rows[-1].figures["effects"]["watch_time"][0] > .2
    # Looks after the end change nothing.
    assert judge(str(site.models), now).verdict is None
    assert roll_back(site.config(action="rollback", reason="we heard complaints")).state == "rolled back"
    assert read_pointer(site.models) == Pointer(fusion=site.base)


def test_what_costs_likes_never_gets_half_of_the_users(site: Site) -> None:
    start(site.config(), BEGIN)
    for number in range(6):
        state, verdict, _ = look(str(site.models), site.serve(number, like=.5))
        if state.state != "canary":
            break
    assert state.state == "rolled back"
    assert verdict.row == "like"
    assert read_pointer(site.models) == Pointer(fusion=site.base)
    assert not any("0.5" in step for step in steps(site))


def test_a_floor_is_watched_before_the_share_has_lasted(site: Site) -> None:
    """Four hours at half of the users are enough to see that likes are gone."""
    patient = replace(site, plan=site.plan.replace(shares=(.5,), proven_share=.9, stage_hours=100))
    start(patient.config(), BEGIN)
    patient.serve(0, like=.2)
    state, verdict, _ = look(str(site.models), BEGIN + DAY / 6)
    assert (state.state, verdict.action) == ("rolled back", "roll back")


def test_before_anything_is_collected_nothing_is_decided(site: Site) -> None:
    start(site.config(), BEGIN)
    write(site.logs, Traffic(users=50, days=0, base=site.base, canary=site.candidate.name).table())
    state, verdict, test = look(str(site.models), BEGIN + 60)
    assert (state.state, verdict.action, test) == ("canary", "no verdict", None)
    assert Store(site.models).read().verdict["words"] == verdict.words
    # But not for ever.
    state, _, _ = look(str(site.models), BEGIN + 6 * DAY)
    assert state.state == "rolled back"
    assert Store(site.models).audit()[-1].why.startswith("5 days at this share have not decided: no verdict")


def test_somebody_elses_pointer_ends_the_rollout(site: Site) -> None:
    start(site.config(), BEGIN)
    other = replace(read_pointer(site.models), canary_share=.3)
    write_pointer(site.models, other)
    state, verdict, _ = look(str(site.models), BEGIN + 60)
    assert (state.state, verdict) == ("ended", None)
    assert read_pointer(site.models) == other
    assert Store(site.models).audit()[-1].why == "somebody else has changed current.json: canary_share is 0.3"


def test_people_decide_too(site: Site) -> None:
    start(site.config(), BEGIN)
    assert promote(site.config(action="promote", reason="the board wants it")).state == "promoted"
    assert read_pointer(site.models) == Pointer(fusion=site.candidate.name)
    row = Store(site.models).audit()[-1]
    assert (row.who, row.why, row.step) == ("tester", "the board wants it", "canary at 0.1 → promoted")
    with pytest.raises(InvalidFieldError, match=r"action: got 'promote'; allowed: this where a candidate is gate or"):
        promote(site.config(action="promote", reason="again"))


def test_a_decision_during_a_look_stands(site: Site) -> None:
    """Somebody rolls back while the log is read; what the look found comes too late."""
    from recfuse.evaluation.ab import run_ab

    start(site.config(), BEGIN)
    now = site.serve(0, watch=1.5)

    def slow(config):
        roll_back(site.config(action="rollback", reason="stop"))
        return run_ab(config)

    state, _, _ = look(str(site.models), now, slow)
    assert state.state == "rolled back"
    assert read_pointer(site.models) == Pointer(fusion=site.base)


def test_a_pointer_that_moves_during_a_look_or_the_gate_is_left_alone(site: Site, monkeypatch) -> None:
    from recfuse.evaluation.ab import run_ab
    from recfuse.rollout import rollout as module

    start(site.config(), BEGIN)
    now = site.serve(0, like=.2)
    moved = replace(read_pointer(site.models), canary_share=.02)

    def slow(config):
        write_pointer(site.models, moved)
        return run_ab(config)

    state, verdict, _ = look(str(site.models), now, slow)
    assert (state.state, verdict.action) == ("canary", "roll back")
    assert read_pointer(site.models) == moved
    assert look(str(site.models), now)[0].state == "ended"
    write_pointer(site.models, Pointer(fusion=site.base))
    gate = module._gate

    def another_is_published(*arguments):
        write_pointer(site.models, Pointer(fusion="another"))
        return gate(*arguments)

    monkeypatch.setattr(module, "_gate", another_is_published)
    refused = start(site.config(), BEGIN)
    assert refused.state == "refused"
    assert refused.row.why.startswith("current.json has changed during the gate: it serves another")
    assert read_pointer(site.models) == Pointer(fusion="another")


def test_one_candidate_at_a_time_and_none_twice(site: Site, tmp_path: Path) -> None:
    first = start(site.config(), BEGIN)
    with pytest.raises(InvalidFieldError, match=r"candidate: got .*; allowed: none while fusion-.* is under way"):
        start(site.config())
    roll_back(site.config(action="rollback", reason="stop"))
    assert start(site.config(), BEGIN + 5).row.number == first.row.number + 3
    roll_back(site.config(action="rollback", reason="stop"))
    with pytest.raises(InvalidFieldError, match=r"candidate: got .*; allowed: another model than the served one"):
        start(site.config(candidate=str(site.models / site.base)))
    write_pointer(site.models, replace(read_pointer(site.models), fusion_canary=site.candidate.name, canary_share=.1))
    with pytest.raises(InvalidFieldError, match=r"models: got 'canary fusion-.*; allowed: no canary but a rollout's"):
        start(site.config())


def test_a_start_that_was_cut_off_in_the_gate_goes_on(site: Site, monkeypatch) -> None:
    from recfuse.rollout import rollout as module

    class Death(BaseException):
        pass

    def dies(*_):
        raise Death

    monkeypatch.setattr(module, "_gate", dies)
    with pytest.raises(Death):
        start(site.config(), BEGIN)
    monkeypatch.undo()
    assert Store(site.models).read().state == "gate"
    assert read_pointer(site.models) == Pointer(fusion=site.base)
    assert start(site.config(), BEGIN).state == "canary"
    assert steps(site) == ["candidate → gate", "gate → canary at 0.1"]


def test_another_vocabulary_does_not_pass_the_gate(site: Site, tmp_path: Path) -> None:
    of = session_logs.vocabulary().replace(fusion_parameters=("p1", "p0"))
    other = export_policy(tmp_path / "made", FixedGaussian([0, 0], 1.0), of, training={}, data_fingerprint="",
                          metrics={})
    state = start(site.config(candidate=str(other)), BEGIN)
    assert state.state == "refused"
    assert state.row.why == ("the gate is not passed: vocabulary is other fusion_parameters, wanted the same as the "
                             "served one's")
    assert read_pointer(site.models) == Pointer(fusion=site.base)


@pytest.mark.parametrize(("targets", "message"), [
    (Targets(), "plan.targets.goals: got {}; allowed: at least one goal, which promotes"),
    (Targets(goals={"love": 0.0}), "plan.targets: got .'love'.; allowed: names of measures: watch_time, like")])
def test_targets_that_nobody_can_reach_are_refused(site: Site, targets, message) -> None:
    with pytest.raises(InvalidFieldError, match=message):
        start(site.config(plan=site.plan.replace(targets=targets)))


@pytest.mark.parametrize(("action", "kept", "stage", "hours", "expected"), [
    ("roll back", False, 0, 0, "rolled back"), ("go on", False, 0, 23, None), ("go on", False, 0, 25, "canary"),
    ("go on", False, 2, 25, None), ("go on", True, 2, 25, "canary"), ("go on", True, 3, 25, None),
    ("promote", True, 1, 1, None), ("promote", True, 1, 25, "canary"), ("promote", True, 3, 1, None),
    ("promote", True, 3, 25, "promoted"), ("no verdict", False, 0, 25, None),
    ("no verdict", False, 3, 24 * 14 + 1, "rolled back"), ("go on", True, 3, 24 * 14 + 1, "rolled back")])
def test_where_a_verdict_leads(site: Site, action, kept, stage, hours, expected) -> None:
    rollout = replace(start(site.config(), BEGIN), plan=Plan(targets=TARGETS), stage=stage, stage_began=0.0)
    step = next_step(rollout, Verdict(action, "words", "like", kept=kept), hours * 3600)
    assert (None if step is None else step[0]) == expected
    if expected == "canary":
        assert step[1] == stage + 1


def test_the_job_says_where_it_stands(site: Site, capsys) -> None:
    assert job.main(RolloutConfig(models=str(site.models))) is None
    assert "no rollout yet" in capsys.readouterr().out
    job.main(site.config())
    assert f"rollout: {site.candidate.name} is canary at 0.1" in capsys.readouterr().out
    site.serve(0)
    job.main(RolloutConfig(action="judge", models=str(site.models)))
    out = capsys.readouterr().out
    assert "verdict: " in out
    assert "last look" in out
    job.main(site.config(action="rollback", reason="enough"))
    assert "enough" in capsys.readouterr().out
    assert job.with_action(["start", "--who", "me"]) == ["--action", "start", "--who", "me"]


@pytest.mark.parametrize(("values", "message"), [
    ({"action": "start"}, "candidate: got ''; allowed: a bundle"),
    ({"action": "promote"}, "reason: got ''; allowed: a sentence"),
    ({"plan": {"shares": (.5, .1)}}, "plan.shares: got .*; allowed: numbers that grow"),
    ({"plan": {"shares": (.5, 1.0)}}, "plan.shares: got .*; allowed: numbers in .0, 1.")])
def test_bad_configs(values, message) -> None:
    with pytest.raises(InvalidFieldError, match=message):
        RolloutConfig(**values)
