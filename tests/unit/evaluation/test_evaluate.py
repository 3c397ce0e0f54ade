"""`evaluate` on small logs: what it reads, leaves out and refuses, and what it says of that."""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import random_logs
from deltalake import write_deltalake
from session_logs import for_delta

from recfuse.behaviours import Behaviour, Vocabulary
from recfuse.bundle import read_bundle
from recfuse.config import InvalidFieldError
from recfuse.evaluation.evaluate import declared_floors, evaluate
from recfuse.fusion.inference import StagePolicy, export_policy
from recfuse.fusion.policies import FixedGaussian
from recfuse.jobs.evaluate import main
from recfuse.logs import exchange
from recfuse.logs import ingest as ingest_module
from recfuse.logs.reading import ReadingConfig, read_sample_piece, sample_pieces
from recfuse.logs.schema import VOCABULARY_FILE, complete, session_log_schema
from recfuse.logs.sessions import SessionRule, to_samples
from recfuse.logs.validation import check
from recfuse.report.config import ReportConfig
from recfuse.report.run import evaluate_and_report
from recfuse.stats.gaussian import gaussian_log_density

VOCABULARY = Vocabulary(
    behaviours=(Behaviour(name="watch_time", kind="long_term"), Behaviour(name="like", kind="short_term")),
    fusion_parameters=("click", "like"), state_size=2)
START = datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC)


def columns(users=150, length=4, *, prefix="u", seed=0, sigma=.5, scale=1.0, gap=60, apart=10_000, undrawn=0):
    """A log of a session a user, its requests `gap` seconds apart, the users `apart`; the first actions of it were not
    drawn."""
    rng, rows = np.random.default_rng(seed), users * length
    user, step = np.divmod(np.arange(rows), length)
    mu = np.full((rows, 2), .25, np.float32)
    spread = np.full((rows, 2), sigma, np.float32)
    action = (mu + spread * rng.standard_normal((rows, 2))).astype(np.float32)
    action[:undrawn] = mu[:undrawn]
    feedback = np.stack([5 + 2 * (action[:, 0] - .25) / sigma + rng.standard_normal(rows), rng.random(rows)], 1) * scale
    return {
        "session_id": [f"s{number}" for number in user], "request_id": [f"{prefix}-r{row}" for row in range(rows)],
        "user_id": [f"{prefix}{number}" for number in user],
        "ts": [START + datetime.timedelta(seconds=int(user[row]) * apart + int(step[row]) * gap)
               for row in range(rows)],
        "stage": ["fine"] * rows, "scene": ["feed"] * rows,
        "state": rng.standard_normal((rows, 2)).astype(np.float32).tolist(), "mu": mu.tolist(),
        "sigma": spread.tolist(), "action": action.tolist(),
        "action_logp": gaussian_log_density(action, mu, spread), "explored": [None] * rows,
        "model_version": ["v"] * rows,
        "feedback": [{"watch_time": float(a), "like": float(b)} for a, b in feedback],
        "last": (step == length - 1).tolist(), "position": [None] * rows}


def table(**changes):
    return complete(columns(**changes), session_log_schema(VOCABULARY))


def write(directory, *tables):
    directory.mkdir(parents=True)
    VOCABULARY.save(directory / VOCABULARY_FILE)
    for number, part in enumerate(tables):
        pq.write_table(part, directory / f"{number}.parquet")
    return str(directory)


def write_samples(directory, rows):
    checked = check(rows, VOCABULARY, "log")
    return write(directory, to_samples(checked.rows, VOCABULARY, SessionRule()).table)


@pytest.fixture
def config(tmp_path):
    def of(holdout, mu=.25, sigma=.5, **changes):
        bundle = export_policy(tmp_path / "fusion", FixedGaussian([mu, mu], sigma), VOCABULARY, training={},
                               data_fingerprint="", metrics={})
        none = str(tmp_path / "none")
        return ReportConfig(**{**dict(fusion=str(bundle), holdout=holdout, samples="", min_ess=25,
                                      output=str(tmp_path / "report"), scenes=none, simulation=none, ab_test=none,
                                      serving=none), **changes})

    return of


def by_name(result):
    return {answer.estimator: answer for answer in result.estimates}


def test_raw_logs_have_the_sessions_of_their_samples(tmp_path, config):
    """Named by user, cut by pauses and by `last`; one null id is a session of its own, and no more."""
    raw = columns(gap=60)
    for row in range(0, 600, 4):  # a pause within every session, ids that repeat from user to user
        for step in range(4):
            raw["session_id"][row + step] = str(step // 2)
    raw["session_id"][5] = None
    rows = complete(raw, session_log_schema(VOCABULARY))
    found, expected = (evaluate(config(path)) for path in (
        write(tmp_path / "raw", rows.slice(300), rows.slice(0, 300)), write_samples(tmp_path / "samples", rows)))
    assert found.horizon == expected.horizon
    for one, other in zip(found.estimates, expected.estimates, strict=True):
        np.testing.assert_allclose(one.logged, other.logged, rtol=1e-6)
        np.testing.assert_allclose(one.estimate, other.estimate, rtol=1e-4)
    assert by_name(found)["PDIS"].logged[0] == pytest.approx(by_name(found)["NCIS"].logged[0] * 600 / 301)


def test_what_ingest_quarantines_is_in_no_estimate(tmp_path, config):
    raw = columns()
    for row in range(0, 60, 2):
        raw["feedback"][row] = {"watch_time": float(row), "like": None}
    raw["feedback"][61] = {"watch_time": float("inf"), "like": 0.0}
    twice = complete(raw, session_log_schema(VOCABULARY))
    log = write(tmp_path / "log", twice, twice.slice(100, 50))
    result = evaluate(config(log))
    assert result.off_policy.requests == 600 - 31
    account = json.loads((tmp_path / "report" / "metrics.json").read_text())["account"]
    assert (account["rows_in"], account["kept"]) == (650, 569)
    assert account["quarantined"]["feedback.like (allowed: a finite number)"] == 30
    assert account["quarantined"]["request_id (allowed: unique: the first row of a request is kept)"] == 50
    with pytest.raises(InvalidFieldError, match=r"holdout: got '12\.5% of the rows quarantined'"):
        result.require(config(log))
    assert evaluate_and_report(config(log)).page.is_file()
    assert "in 650 = kept 569 + quarantined 81" in (tmp_path / "report" / "report.html").read_text()


def test_a_log_without_a_good_row_is_refused(tmp_path, config):
    raw = columns() | {"action_logp": np.zeros(600)}
    with pytest.raises(InvalidFieldError, match=r"holdout: got '0 of 600 rows kept'.*the numbers look like zero"):
        evaluate(config(write(tmp_path / "log", complete(raw, session_log_schema(VOCABULARY)))))


def test_a_directory_that_serving_wrote_is_read_through_its_delta_log(tmp_path, config):
    served = tmp_path / "served"
    served.mkdir()
    VOCABULARY.save(served / VOCABULARY_FILE)
    rows = for_delta(table())
    for start in range(0, 600, 100):
        write_deltalake(served / "sessions", rows.slice(start, 100), mode="append")
    write_deltalake(served / "sessions", rows.slice(0, 400), mode="overwrite")
    assert evaluate(config(str(served))).off_policy.requests == 400


def test_actions_that_were_not_drawn_have_no_ratio(tmp_path, config):
    """The first 100 requests, those of the first 25 sessions."""
    result = evaluate(config(write(tmp_path / "log", table(undrawn=98))))
    assert by_name(result)["NCIS"].requests == 600 - 98
    assert by_name(result)["PDIS"].requests == 600 - 100
    assert any(note.startswith("98 of 600 held-out requests are left out of ratios") for note in result.notes)
    assert any(note.startswith("25 sessions with such a request") for note in result.notes)
    none = evaluate(config(write(tmp_path / "none", table(undrawn=600))))
    assert all("none of 600 actions was drawn" in answer.refused for answer in none.estimates)
    samples = write_samples(tmp_path / "samples", table(prefix="s", seed=1))
    critics = by_name(evaluate(config(str(tmp_path / "none"), samples=samples)))
    assert not critics["DM"].refused
    assert not critics["FQE"].refused
    assert critics["DR"].refused


def test_sessions_that_the_log_cuts_are_no_whole_sessions(tmp_path, config):
    raw = columns(apart=200)  # the last nine sessions begin within half an hour of the end
    raw["last"] = [None] * 600
    result = evaluate(config(write(tmp_path / "log", complete(raw, session_log_schema(VOCABULARY)))))
    cut = result.reading.account.truncated
    assert 5 < cut < 15
    assert result.off_policy.requests == 600 - cut
    assert by_name(result)["PDIS"].requests == 600 - 4 * cut
    assert any(note.startswith(f"{cut} sessions that the end of the log cuts") for note in result.notes)


def test_a_time_split_keeps_sessions_whole(tmp_path, config):
    log = write(tmp_path / "log", table())
    middle = START + datetime.timedelta(seconds=20 * 10_000 + 90)  # within the session of user 20
    result = evaluate(config(log, after=middle.isoformat()))
    assert result.off_policy.requests == 4 * 129
    assert result.reading.straddling == 1
    assert by_name(result)["PDIS"].logged[0] == pytest.approx(4 * result.off_policy.logged[0])
    assert f"1 sessions that began before {middle.isoformat()} and went on after it are left out whole" in result.notes
    with pytest.raises(InvalidFieldError, match=r"after: got '2999-01-01'; allowed: a time at which at least one"):
        evaluate(config(log, after="2999-01-01"))


def test_equal_values_of_other_requests_are_no_leak(tmp_path, config):
    """The same states and actions, of other users' requests; then one request of the samples themselves."""
    log = write(tmp_path / "log", table())
    apart = write_samples(tmp_path / "apart", table(prefix="v"))
    result = evaluate(config(log, samples=apart))
    assert (result.separation.shared_rows, result.separation.shared_users, result.separation.users) == (0, 0, 150)
    leaked = write_samples(tmp_path / "leaked", pa.concat_tables([table(prefix="v"), table().slice(0, 4)]))
    with pytest.raises(InvalidFieldError, match=r"holdout: got '4 rows that are in .*leaked'"):
        evaluate(config(log, samples=leaked))


def test_request_ids_of_other_users_are_said_and_no_leak(tmp_path, config):
    raw = columns(prefix="v") | {"request_id": columns()["request_id"]}
    samples = write_samples(tmp_path / "samples", complete(raw, session_log_schema(VOCABULARY)))
    found = evaluate(config(write(tmp_path / "log", table()), samples=samples)).separation
    assert (found.shared_rows, found.namesakes) == (0, 600)
    assert "600 request ids are there too, of other users or times" in str(found)
    again = table(apart=11_000, seed=3).slice(4)  # of the same users, but at other times
    found = evaluate(config(str(tmp_path / "log"), samples=write_samples(tmp_path / "again", again))).separation
    assert (found.shared_users, found.shared_rows, found.namesakes) == (149, 0, 596)


def test_samples_without_request_ids_cannot_be_checked(tmp_path, config):
    samples = write_samples(tmp_path / "samples", table(prefix="v"))
    path = f"{samples}/0.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["request_id", "ts", "stage", "scene", "explored", "truncated"]),
                   path)
    result = evaluate(config(write(tmp_path / "log", table()), samples=samples))
    assert "cannot be checked, since the samples carry no request ids" in str(result.separation)
    assert "DR" in by_name(result)


def test_samples_that_are_not_there_are_said(tmp_path, config):
    result = evaluate(config(write(tmp_path / "log", table()), samples=str(tmp_path / "smaples")))
    assert result.separation is None
    assert any("smaples" in note and "cannot be checked" in note for note in result.notes)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidFieldError, match=r"vocabulary: got .*empty"):
        evaluate(config(str(tmp_path / "log"), samples=str(tmp_path / "empty")))
    with pytest.raises(InvalidFieldError, match="these are session logs"):
        evaluate(config(str(tmp_path / "log"), samples=write(tmp_path / "other", table(prefix="o"))))


@pytest.mark.parametrize("scale", [-1.0, 1e-9, 1e30, -1e30])
def test_feedback_of_any_size_and_sign(tmp_path, config, scale):
    """Differences are relative to the size of the mean, so that they change their sign with the feedback's alone."""
    def of(name, scale):
        log = write(tmp_path / name, table(scale=scale))
        samples = write_samples(tmp_path / f"{name}-samples", table(scale=scale, prefix="s", seed=1))
        return evaluate_and_report(config(log, mu=.35, samples=samples))

    plain, found = of("plain", 1.0), of("scaled", scale)
    assert found.page.read_text().count("<img") == 2
    for one, other in zip(plain.evaluation.estimates, found.evaluation.estimates, strict=True):
        assert one.refused == other.refused
        np.testing.assert_allclose(other.estimate, one.estimate * scale, rtol=1e-3)
        np.testing.assert_allclose(np.sort([other.low, other.high], 0), np.sort([one.low * scale, one.high * scale], 0),
                                   rtol=1e-2)
    changes = [result.evaluation.blocks[0].answers[0].change[0] for result in (plain, found)]
    assert changes[0] > .01
    assert changes[1] == pytest.approx(np.sign(scale) * changes[0], rel=.01)


def test_policies_of_almost_no_spread(tmp_path, config):
    result = evaluate(config(write(tmp_path / "log", table(sigma=3e-7)), sigma=3e-7))
    np.testing.assert_allclose(result.off_policy.estimate, result.off_policy.logged, rtol=1e-4)
    assert not result.off_policy.refused


@pytest.mark.parametrize("change", [
    {"user_id": pa.array([f"u{row // 4}" for row in range(600)], pa.string_view())},
    {"ts": pa.array([time.replace(tzinfo=None) for time in columns()["ts"]], pa.timestamp("ns"))},
    {"action_logp": None},
    {"feedback": pa.array([list(each.items()) for each in columns()["feedback"]], pa.map_(pa.string(), pa.float32()))},
    {"user_id": pa.array([row // 4 for row in range(600)], pa.int64())}])
def test_whatever_ingest_takes_is_taken(tmp_path, config, change):
    [(name, column)] = change.items()
    rows = table().drop_columns(name)
    log = write(tmp_path / "log" / "dt=2024-05-01", rows if column is None else rows.append_column(name, column))
    (tmp_path / "log" / "._0.parquet").write_bytes(b"\0\5\26\7")
    found = evaluate(config(str(tmp_path / "log"), after="2024-05-02")).off_policy
    assert found.requests == 4 * (150 - 9)
    assert log.endswith("dt=2024-05-01")
    np.testing.assert_allclose(found.estimate, found.logged, rtol=1e-4)


@pytest.fixture
def without_ray(monkeypatch):
    """What runs on Ray runs here, in the same steps."""
    monkeypatch.setattr(ingest_module, "ingest", random_logs.ingest_here)
    monkeypatch.setattr(exchange, "map_samples", lambda source, function, name: (
        function(piece, read_sample_piece(source, piece, name)) for piece in sample_pieces(source, name)))


def same_answers(found, expected, count=2):
    for one, other in zip(found.estimates[:count], expected.estimates[:count], strict=True):
        assert (one.estimator, one.requests, one.users) == (other.estimator, other.requests, other.users)
        for name in ("estimate", "logged", "effective_sample_size", "mean_ratio", "capped_share"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("changes", [{"after": True}, {"new_users": True}, {"after": True, "new_users": True}],
                         ids=["after", "new_users", "both"])
@pytest.mark.parametrize("rows_of_group", [7, 1000], ids=["sessions cut by row groups", "one row group"])
def test_streaming_counts_the_same_sessions_and_users(tmp_path, config, without_ray, changes, rows_of_group):
    """From the second request of user 50 on, and without the users that the samples have."""
    others = columns(users=70, seed=1)
    others["request_id"] = [f"other {name}" for name in others["request_id"]]
    known = write_samples(tmp_path / "known", complete(others, session_log_schema(VOCABULARY)))
    directory = tmp_path / "samples"
    pieces = to_samples(check(table(undrawn=210), VOCABULARY, "log").rows, VOCABULARY, SessionRule()).table
    write(directory)
    pq.write_table(pieces, directory / "0.parquet", row_group_size=rows_of_group)
    if "after" in changes:
        changes = {**changes, "after": (START + datetime.timedelta(seconds=50 * 10_000 + 60)).isoformat()}
    for held_out in (str(directory), write(tmp_path / "log", table(undrawn=210))):
        plain = evaluate(config(held_out, mu=.3, samples=known, **changes))
        streamed = evaluate(config(held_out, mu=.3, samples=known, streaming=True, **changes))
        same_answers(streamed, plain)
        assert str(streamed.separation) == str(plain.separation)
        assert streamed.reading.straddling == plain.reading.straddling == int("after" in changes)
        assert set(streamed.notes) <= set(plain.notes)
        assert plain.off_policy.users == (98 if "new_users" not in changes else 80)


def test_streaming_refuses_what_leaves_nothing(tmp_path, config, without_ray):
    log = write(tmp_path / "log", table())
    with pytest.raises(InvalidFieldError, match=r"after: got '2030-01-01'.*has yet to begin"):
        evaluate(config(log, streaming=True, after="2030-01-01", output=str(tmp_path / "a")))
    with pytest.raises(InvalidFieldError, match="new_users: got True; allowed: samples in"):
        evaluate(config(log, streaming=True, new_users=True, output=str(tmp_path / "b")))
    others = columns(seed=1)
    others["request_id"] = [f"other {name}" for name in others["request_id"]]
    everybody = write_samples(tmp_path / "all", complete(others, session_log_schema(VOCABULARY)))
    with pytest.raises(InvalidFieldError, match="holdout: got '150 users, all in the samples'"):
        evaluate(config(log, streaming=True, new_users=True, samples=everybody, output=str(tmp_path / "c")))


@pytest.mark.parametrize("streaming", [False, True])
def test_requests_without_density_have_no_ratio(tmp_path, config, without_ray, streaming):
    """What needs none of them goes on: of a few such requests, and where there is nothing else."""
    others = write_samples(tmp_path / "others", table(prefix="v", seed=1))
    optional = {"reading": ReadingConfig(density="optional"), "samples": others, "streaming": streaming}
    for count in (98, 600):
        raw = columns()
        for name in ("mu", "sigma", "action_logp"):
            raw[name] = [None] * count + list(raw[name])[count:]
        log = write(tmp_path / f"log {count}", complete(raw, session_log_schema(VOCABULARY)))
        result = evaluate(config(log, output=str(tmp_path / f"out {count}"), **optional))
        assert any(note.startswith(f"{count} of 600 held-out requests are left out of ratios, since the log has no")
                   for note in result.notes)
        answers = by_name(result)
        for name in ("DM", "FQE"):
            assert not answers[name].refused
            assert answers[name].requests == 600
        if count == 98:
            assert (answers["NCIS"].requests, answers["PDIS"].requests) == (502, 500)
        else:
            for name in set(answers) - {"DM", "FQE"}:
                assert answers[name].refused.startswith("none of 600 actions that were drawn has a density")


def test_streaming_reads_the_same(tmp_path, config, without_ray):
    """In memory, by ingest and batch by batch, and from samples: the same rows, account, NCIS and IS."""
    raw = columns(apart=200, undrawn=50)
    raw["last"] = [None] * 600
    raw["feedback"][300] = {"watch_time": 1.0, "like": None}
    log = write(tmp_path / "log", complete(raw, session_log_schema(VOCABULARY)))
    others = write_samples(tmp_path / "others", table(prefix="v", seed=1))
    plain = evaluate(config(log, mu=.3, samples=others))
    streamed = evaluate(config(log, mu=.3, samples=others, streaming=True, critic_rows=150))
    again = evaluate(config(f"{tmp_path}/report/held_out_samples", mu=.3, samples=others, streaming=True))
    for result in (streamed, again):
        assert asdict(result.reading.account) | {"notes": ()} == asdict(plain.reading.account)
        assert str(result.separation) == str(plain.separation)
        assert result.notes[0] == plain.notes[0]
        same_answers(result, plain)
    first = streamed.reading.log
    assert 146 <= len(first.state) <= 150
    assert (np.bincount(first.session) >= 3).all(), "the first sessions are whole"
    leaked = write_samples(tmp_path / "leaked", table())
    with pytest.raises(InvalidFieldError, match="rows that are in"):
        evaluate(config(write(tmp_path / "same", table()), samples=leaked, streaming=True,
                        output=str(tmp_path / "elsewhere")))


def test_samples_that_are_named_and_not_there_are_an_error(tmp_path, config):
    """The report is written all the same; it says what could not be checked."""
    named = config(write(tmp_path / "log", table()), samples=str(tmp_path / "smaples"))
    with pytest.raises(InvalidFieldError, match=r"samples: got .*smaples'; allowed: a directory of samples that"):
        main(named)
    assert "smaples" in (tmp_path / "report" / "metrics.json").read_text()


@pytest.mark.parametrize("content", ['{"latency_ms": "fast"}', "[1, 2]", '{"latency_ms": [1, "2"]}'])
def test_a_file_that_holds_no_latencies_is_named(tmp_path, config, content):
    (tmp_path / "serving.json").write_text(content)
    with pytest.raises(InvalidFieldError, match=r"serving: got .*; allowed: a JSON object whose latency_ms is a list"):
        main(config(write(tmp_path / "log", table()), serving=str(tmp_path / "serving.json")))


def test_a_file_as_output_is_named_before_anything_is_read(tmp_path, config):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InvalidFieldError, match=r"output: got .*file'; allowed: a directory"):
        main(config(str(tmp_path / "nowhere"), output=str(tmp_path / "file")))


@pytest.mark.parametrize(("training", "floor"), [
    ({}, 0.0), ({"replay": {"floor": -.02, "floors": {}}}, -.02), ({"floors": {"like": -.1}}, -.1),
    ({"replay": {"floor": -.02, "floors": {"like": -.3}}}, -.3), ({"replay": None, "floors": {"like": -.1}}, -.1)])
def test_floors_are_those_of_training(tmp_path, training, floor):
    """Of short-term behaviours alone."""
    bundle = export_policy(tmp_path, FixedGaussian([0, 0], .5), VOCABULARY, training=training, data_fingerprint="",
                           metrics={})
    assert declared_floors(read_bundle(bundle)) == {"like": floor}


def test_the_page_rests_on_the_verdict_that_the_metrics_keep(tmp_path, config):
    """Whoever lists runs reads it there."""
    found = evaluate_and_report(config(write(tmp_path / "log", table()), mu=.35))
    kept = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert kept["floors"] == {"like": 0.0}
    assert kept["verdict"]["words"] in found.page.read_text()
    assert [check["question"] for check in kept["verdict"]["checks"]] == [
        "Does it bring more?", "Are the floors kept?", "Can the log support it?"]


def staged(**changes):
    """Every other request is of the stage mix."""
    raw = columns(**changes)
    return complete({**raw, "stage": ["fine", "mix"] * (len(raw["stage"]) // 2)}, session_log_schema(VOCABULARY))


def only(rows, stage):
    """A log of its requests alone, whose sessions end where those of the log do."""
    own = rows.filter(pa.array(np.array(rows["stage"].to_pylist()) == stage))
    last = pa.array([False, True] * (own.num_rows // 2))
    return own.set_column(own.schema.get_field_index("last"), own.schema.field("last"), last)


@pytest.mark.parametrize("streaming", [False, True])
def test_each_request_is_weighed_by_the_policy_of_its_stage(tmp_path, config, without_ray, streaming):
    """And a stage alone as a log of its requests alone, with critics of its samples alone."""
    rows, known = staged(users=200), staged(users=100, prefix="k", seed=1)
    log, samples = write(tmp_path / "log", rows), write_samples(tmp_path / "samples", known)
    of_stage = {name: write(tmp_path / name, only(rows, name)) for name in ("fine", "mix")}
    alone = write_samples(tmp_path / "alone", only(known, "mix"))
    bundle = export_policy(tmp_path / "both", FixedGaussian([.3, .3], .5), VOCABULARY, training={}, data_fingerprint="",
                           metrics={}, stages={"mix": StagePolicy(FixedGaussian([.1, .1], .5), VOCABULARY, {}, "", {})})

    def found(holdout, name, policy="", **options):
        settings = config(holdout, streaming=streaming, output=str(tmp_path / f"out-{name}"), **options)
        return evaluate(settings.replace(fusion=policy) if policy else settings)

    both = by_name(found(log, "both", str(bundle)))
    fine, mix = (by_name(found(of_stage[name], name, mu=mu)) for name, mu in (("fine", .3), ("mix", .1)))
    for name in ("NCIS", "IS"):
        assert both[name].requests == fine[name].requests + mix[name].requests
    np.testing.assert_allclose(both["IS"].estimate, (fine["IS"].estimate + mix["IS"].estimate) / 2, rtol=1e-6)

    chosen = found(log, "chosen", str(bundle), stage="mix", samples=samples)
    expected = by_name(found(of_stage["mix"], "expected", mu=.1, samples=alone))
    assert any(note.startswith("only requests of the stage mix count") for note in chosen.notes)
    assert set(by_name(chosen)) == set(expected)
    for name, answer in by_name(chosen).items():
        np.testing.assert_allclose(answer.estimate, expected[name].estimate, rtol=1e-5, err_msg=name)
    whole = found(log, "whole", str(bundle), samples=samples)
    assert "DM" not in by_name(whole)
    assert any("choose one by `stage`" in note for note in whole.notes)


def test_a_stage_that_nobody_asked_at_is_named(tmp_path, config, without_ray):
    log = write(tmp_path / "log", table(users=10))
    for streaming in (False, True):
        with pytest.raises(InvalidFieldError, match="stage: got 'mix'; allowed: a stage with held-out requests"):
            evaluate(config(log, stage="mix", streaming=streaming, output=str(tmp_path / f"{streaming}")))
    with pytest.raises(InvalidFieldError, match="stage: "):
        config(log, stage="last")
