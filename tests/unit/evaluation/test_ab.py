"""An A/B test of what was served: what it finds, what stops it, and what it says."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import session_logs
from deltalake import write_deltalake
from served_logs import BASE, BEGIN, CANARY, DAY, Traffic, write

from recfuse.bundle.pointer import Pointer, write_pointer
from recfuse.config import InvalidFieldError
from recfuse.evaluation.ab import ServedTest, run_ab, sample_ratio
from recfuse.evaluation.config import AbConfig, Targets
from recfuse.evaluation.verdict import decide
from recfuse.jobs import ab
from recfuse.logs.schema import VOCABULARY_FILE
from recfuse.stats.moments import Moments
from recfuse.stats.sequential import always_valid_reach

TARGETS = Targets(goals={"watch_time": 0.0}, floors={"like": -0.05}, effect=.1)


def run(directory: Path, of: Traffic, targets: Targets = TARGETS, **changes: object) -> ServedTest:
    log = write(directory, of.table())
    return run_ab(AbConfig(**{"logs": log, "base": BASE, "canary": CANARY, "share": of.share, "targets": targets,
                              "since": "2022-05-01", **changes}))


@pytest.fixture(scope="module")
def better(tmp_path_factory) -> ServedTest:
    return run(tmp_path_factory.mktemp("better"), Traffic(users=3_000, watch=1.3, like=1.2, pace=4))


def test_the_effect_is_that_of_the_users(better) -> None:
    """The same numbers from the rows themselves; unadjusted ones differ by what chance gave the arms."""
    of = Traffic(users=3_000, watch=1.3, like=1.2, pace=4)
    table = of.table()
    inside = table["ts"].cast("int64").to_numpy() >= BEGIN * 1_000_000
    user = np.array([int(name[1:]) for name in table["user_id"].to_pylist()])[inside]
    values = pc.struct_field(table["feedback"].combine_chunks(), "watch_time").to_numpy()[inside]
    sums, seen = np.bincount(user, values, of.users), np.bincount(user, minlength=of.users) > 0
    plain = sums[of.treated & seen].mean() / sums[~of.treated & seen].mean() - 1
    watch = better.effect("watch_time")
    assert watch.estimate == pytest.approx(plain, abs=.05)
    assert watch.low < .3 < watch.high
    assert watch.low == pytest.approx(watch.estimate - float(always_valid_reach(watch.error, better.spread)))
    # What users did before says more than half of what differs between them.
    assert .4 < watch.reduction < .95
    assert better.effect("requests").reduction < .2


def test_what_is_better_is_promoted(better) -> None:
    verdict = decide(better)
    assert verdict.action == "promote"
    assert verdict.row == "watch_time"
    assert verdict.words.startswith("promote: watch_time +")
    assert verdict.kept


def test_what_costs_likes_is_rolled_back(tmp_path) -> None:
    verdict = decide(run(tmp_path, Traffic(users=3_000, watch=1.3, like=.6, pace=4)))
    assert (verdict.action, verdict.row) == ("roll back", "like")
    assert "against its floor -5.00%, which it is surely below" in verdict.words


def test_what_is_surely_worse_is_rolled_back_by_its_goal(tmp_path) -> None:
    verdict = decide(run(tmp_path, Traffic(users=3_000, watch=.6, pace=4)))
    assert (verdict.action, verdict.row) == ("roll back", "watch_time")
    assert "surely does not reach" in verdict.words


def test_what_is_equal_goes_on_and_says_until_when(tmp_path) -> None:
    test = run(tmp_path, Traffic(users=2_000))
    verdict = decide(test)
    assert verdict.action == "go on"
    assert verdict.words.startswith("go on until about 20")
    assert verdict.row in ("watch_time", "like")
    # After so long the interval reaches just as far as the difference that is sought.
    bound = {"watch_time": 0.0, "like": -.05}[verdict.row]
    effect = test.effect(verdict.row)
    factor = (verdict.until.timestamp() - BEGIN) / (test.days * DAY)
    reach = float(always_valid_reach(effect.error / math.sqrt(factor), test.spread))
    assert reach == pytest.approx(verdict.smallest, rel=1e-3)
    assert verdict.smallest == pytest.approx(max(effect.estimate - bound, .1))


def test_an_unproven_floor_does_not_hold_up(better) -> None:
    strict = Targets(goals={"watch_time": 0.0}, floors={"like": -0.0, "requests": -.001}, effect=.1)
    held = dataclasses.replace(better, targets=strict)
    assert (decide(held).action, decide(held).row) == ("go on", "requests")
    excused = dataclasses.replace(better, targets=strict.replace(unproven=("requests",)))
    assert decide(excused).action == "promote"


def test_users_that_are_lost_stop_the_verdict(tmp_path) -> None:
    test = run(tmp_path, Traffic(users=3_000, watch=1.3, lost=.2))
    verdict = decide(test)
    assert (verdict.action, verdict.row) == ("no verdict", "sample ratio")
    assert test.ratio.p < 1e-6
    assert "chi-square" in verdict.words


def test_a_canary_that_is_not_served_stops_the_verdict(tmp_path) -> None:
    verdict = decide(run(tmp_path, Traffic(users=1_000, watch=1.3, served=.9)))
    assert (verdict.action, verdict.row) == ("no verdict", "decisions by another model")


def test_without_goals_there_is_no_verdict_and_without_users_no_claim(better) -> None:
    assert decide(dataclasses.replace(better, targets=Targets())).action == "no verdict"
    many = dataclasses.replace(better, targets=Targets(floors={"like": -.5}))
    assert decide(many).action == "go on"
    assert "no goal is named" in decide(many).words


def test_little_is_not_claimed(tmp_path) -> None:
    test = run(tmp_path, Traffic(users=150, watch=1.3), Targets(goals={"watch_time": 0.0}))
    effect = test.effect("watch_time")
    assert math.isnan(effect.low)
    assert effect.p == 1.0
    assert "(too few)" in test.rows()[0][2]
    verdict = decide(test)
    assert (verdict.action, verdict.until) == ("go on", None)


def test_novelty_is_seen_by_days(tmp_path) -> None:
    """What the canary brings on a user's first day only fades."""
    log = write(tmp_path, Traffic(users=2_000, days=4, pace=6, novelty=2.0).table())
    test = run_ab(AbConfig(logs=log, base=BASE, canary=CANARY, share=.5, since="2022-05-01"))
    watch, like = test.effect("watch_time"), test.effect("like")
    assert watch.days[0].low > .7
    assert watch.days[1].low < 0 < watch.days[1].high
    assert watch.fading[2] < 0
    assert like.fading[1] < 0 < like.fading[2]


def test_what_is_not_named_is_as_served(tmp_path) -> None:
    of = Traffic(users=400)
    log = write(tmp_path / "log", of.table())
    write_pointer(tmp_path / "models", Pointer(fusion=BASE, fusion_canary=CANARY, canary_share=.5))
    named = run_ab(AbConfig(logs=log, base=BASE, canary=CANARY, share=.5))
    served = run_ab(AbConfig(logs=log, models=str(tmp_path / "models")))
    assert served.rows() == named.rows()
    write_pointer(tmp_path / "models", Pointer(fusion=BASE))
    with pytest.raises(InvalidFieldError, match=r"canary: got ''; allowed: the version of a model; current.json names"):
        run_ab(AbConfig(logs=log, models=str(tmp_path / "models")))
    with pytest.raises(InvalidFieldError, match=r"logs: .* allowed: decisions of nobody"):
        run_ab(AbConfig(logs=log, base=BASE, canary="nobody", share=.5))
    with pytest.raises(InvalidFieldError, match=r"targets: got .'love'.; allowed: names of measures: watch_time, like"):
        run_ab(AbConfig(logs=log, targets=Targets(goals={"love": 0.0})))


def test_the_table_of_serving_is_a_log(tmp_path) -> None:
    """A Delta table, the vocabulary beside it, as the mover writes them."""
    table = Traffic(users=200).table()
    plain = run(tmp_path / "plain", Traffic(users=200))
    for part in (table.slice(0, 700), table.slice(700)):
        write_deltalake(str(tmp_path / "served" / "sessions"), session_logs.for_delta(part), mode="append")
    session_logs.vocabulary().save(tmp_path / "served" / VOCABULARY_FILE)
    served = run_ab(AbConfig(logs=str(tmp_path / "served"), base=BASE, canary=CANARY, share=.5, targets=TARGETS,
                             since="2022-05-01"))
    assert served.rows() == plain.rows()


@pytest.mark.parametrize(("values", "message"), [
    ({"floors": {"like": .1}}, r"floors.like: got 0.1; allowed: a relative change in \[-1, 0\]"),
    ({"goals": {"like": -.1}}, "goals.like: got -0.1; allowed: a relative change ≥ 0"),
    ({"unproven": ("like",)}, "unproven: got .'like'.; allowed: names of floors")])
def test_bad_targets(values, message) -> None:
    with pytest.raises(InvalidFieldError, match=message):
        Targets(**values)


def test_the_ratio_by_hand() -> None:
    """(60 − 50)²/50 + (40 − 50)²/50 = 4."""
    found = sample_ratio(60, 40, .5)
    assert found.chi_square == pytest.approx(4.0)
    assert found.p == pytest.approx(math.erfc(2 / math.sqrt(2)))
    assert found.valid_p > found.p


def test_right_ratios_are_seldom_stopped_by_many_looks() -> None:
    """A look after every hundredth of 20,000 users, in 300 tests, at shares of a canary's beginning and end."""
    rng, stopped = np.random.default_rng(0), 0
    for number in range(300):
        share = (.05, .5)[number % 2]
        canary = (rng.random(20_000) < share).cumsum()[199::200]
        totals = np.arange(200, 20_001, 200)
        stopped += min(sample_ratio(int(total - mine), int(mine), share).valid_p
                       for total, mine in zip(totals[::10], canary[::10], strict=True)) < .05
    assert stopped / 300 <= .05


def test_the_job_prints_the_verdict(tmp_path, capsys) -> None:
    log = write(tmp_path, Traffic(users=400).table())
    test, verdict = ab.main(AbConfig(logs=log, base=BASE, canary=CANARY, share=.5, targets=TARGETS))
    out = capsys.readouterr().out
    assert f"verdict: {verdict.words}" in out
    for effect in test.effects:
        assert effect.name in out


def test_moments_carry_all_that_a_test_needs() -> None:
    """A day's effect from counts, sums and squares is that of its users."""
    values = np.array([[1.0], [2.0], [4.0]])
    moments = Moments.of(values)
    from recfuse.evaluation.ab import _of_sums

    again = _of_sums(3.0, 7.0, 21.0)
    np.testing.assert_allclose(again.scatter, moments.scatter)
    np.testing.assert_allclose(again.mean, moments.mean)
