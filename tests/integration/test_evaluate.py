"""The job `evaluate`: NCIS on held-out logs, and the report."""

import dataclasses
import json
import re
import shutil
import subprocess

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recfuse.bundle import newest_bundle, read_bundle
from recfuse.config import InvalidFieldError
from recfuse.evaluation.case import Case, action_moments, policy_log_prob
from recfuse.evaluation.estimator import estimate_all
from recfuse.evaluation.estimators import ESTIMATORS
from recfuse.evaluation.fitted_q import fit_critics
from recfuse.evaluation.held_out import read_held_out, read_transitions
from recfuse.fusion.inference import FusionActor, export_policy
from recfuse.fusion.policies import FixedGaussian
from recfuse.jobs import evaluate as job
from recfuse.logs.schema import complete, sample_schema
from recfuse.report.config import ReportConfig
from recfuse.report.page import write_report
from recfuse.report.run import evaluate_and_report
from recfuse.report.sections import SECTIONS
from recfuse.simulation.rollout import rollout
from recfuse.simulation.session_logs import session_log, write_logs
from tests.unit.evaluation.user_value import USER_VALUE
from tests.unit.report.test_report import DATA
from tests.unit.simulation import worlds


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A held-out log of the declared policy."""
    root = tmp_path_factory.mktemp("run")
    write_logs(worlds.world(), worlds.LOGGED, root / "holdout", persons=300, seed=5, model_version="declared")
    return root


def config(run, output, policy):
    output.mkdir(exist_ok=True)
    bundle = export_policy(output / "fusion", policy, worlds.world().vocabulary, training={}, data_fingerprint="none",
                           metrics={})
    return ReportConfig(fusion=str(bundle.parent), holdout=str(run / "holdout"), samples="",
                        scenes=str(run / "none"), simulation=str(run / "none"), ab_test=str(run / "none"),
                        serving=str(run / "none.json"), output=str(output / "report"))


def test_the_logging_policy_has_the_value_of_its_log(run, tmp_path, capsys):
    result = job.main(config(run, tmp_path, worlds.LOGGED))
    found = result.evaluation.off_policy
    np.testing.assert_allclose(found.estimate, found.logged, rtol=1e-4)
    assert found.ess[0] == pytest.approx(found.requests, rel=1e-4)
    assert result.page.read_text().count("<img") == 3
    written = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert written["off_policy"]["behaviours"] == ["watch_time", "click", "like", "comment", "forward", "follow"]
    assert "report:" in capsys.readouterr().out


def test_a_policy_far_from_the_log_is_refused(run, tmp_path):
    result = job.main(config(run, tmp_path, FixedGaussian([9] * 6, .1))).evaluation
    assert "effective sample size" in result.off_policy.refused
    assert all(block.answers[0].refused for block in result.blocks[:3])
    assert any("more days" in sentence or "σ" in sentence for sentence in result.advice)


def test_bad_input_is_refused(run, tmp_path):
    good = config(run, tmp_path, worlds.LOGGED)
    with pytest.raises(InvalidFieldError, match=r"holdout: got .*nowhere.*a directory that exists"):
        job.main(good.replace(holdout=str(tmp_path / "nowhere")))
    with pytest.raises(InvalidFieldError, match=r"fusion bundle: got .*a bundle of kind fusion, or a directory"):
        job.main(good.replace(fusion=str(tmp_path / "nowhere")))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InvalidFieldError, match=r"broken\.json: got .*a JSON file"):
        job.main(good.replace(serving=str(tmp_path / "broken.json")))
    with pytest.raises(InvalidFieldError, match=r"cap: got 0.*allowed: a number > 0"):
        good.replace(cap=0.0)


def test_critics_and_sessions_where_there_are_samples(run, tmp_path):
    """With samples of other users, every estimator is in the result; none is far from the log for the logged policy."""
    samples = tmp_path / "samples"
    write_samples(samples, persons=np.arange(1_000, 1_600), seed=6)
    result = job.main(config(run, tmp_path, worlds.LOGGED).replace(samples=str(samples))).evaluation
    names = [one.estimator for one in result.estimates]
    assert names == ["NCIS", "IS", "DR", "SN-DR", "DM", "windowed NCIS", "ratio of rates", "PDIS",
                     "SN-PDIS", "DR (session)", "SN-DR (session)", "FQE"]
    assert not any(one.refused for one in result.estimates)
    for one in (one for one in result.estimates if not one.ranks_only):
        error = (one.high[0] - one.low[0]) / 3.92
        assert abs(one.estimate[0] - one.logged[0]) < 5 * error + .03 * one.logged[0], one.estimator
    assert result.separation.shared_users == result.separation.shared_rows == 0
    assert result.horizon > 1


def test_an_estimator_from_outside_the_package(run, tmp_path, capsys):
    """It stands in the job's table of its question, in its metrics and on its page."""
    settings = config(run, tmp_path, worlds.LOGGED)
    result = evaluate_and_report(settings, estimators=(*ESTIMATORS, USER_VALUE))
    job.show(settings, result)
    assert any("UserIS" in line for line in capsys.readouterr().out.splitlines())
    block = json.loads((tmp_path / "report" / "metrics.json").read_text())["off_policy"]["blocks"][-1]
    assert (block["question"], block["answers"][-1]["estimator"]) == ("a user over a time", "UserIS")
    assert "UserIS" in result.page.read_text()


def test_a_split_by_time(run, tmp_path):
    """Only sessions that began in the middle of the log or later are counted, whole."""
    rows = pq.read_table(run / "holdout" / "part-00000.parquet", columns=["session_id", "ts"]).to_pylist()
    middle = sorted(row["ts"] for row in rows)[len(rows) // 2]
    early = {row["session_id"] for row in rows if row["ts"] < middle}
    straddling = early & {row["session_id"] for row in rows if row["ts"] >= middle}
    whole = config(run, tmp_path, worlds.LOGGED)
    late = job.main(whole.replace(after=middle.isoformat())).evaluation
    assert late.off_policy.requests == sum(row["session_id"] not in early for row in rows) < len(rows)
    assert late.reading.straddling == len(straddling) > 0
    assert any(note.startswith(f"{len(straddling)} sessions that began before") for note in late.notes)
    with pytest.raises(InvalidFieldError, match="after: got 'tomorrow'; allowed: an ISO time"):
        whole.replace(after="tomorrow")
    with pytest.raises(InvalidFieldError, match="after: got '2999-01-01'; allowed: a time at which at least one"):
        job.main(whole.replace(after="2999-01-01"))


def test_a_split_by_user(run, tmp_path):
    """The samples have other rows of half of the held-out users, and rows of strangers: the other half counts."""
    users = pq.read_table(run / "holdout" / "part-00000.parquet", columns=["user_id"])["user_id"].to_pylist()
    world = worlds.world()
    known = {str(world.user_ids[person]) for person in range(75)}  # persons beyond the users have ids of their own
    samples = tmp_path / "samples"
    write_samples(samples, persons=np.concatenate([np.arange(75), np.arange(1_000, 1_400)]), seed=6)
    whole = config(run, tmp_path, worlds.LOGGED).replace(samples=str(samples))
    assert job.main(whole).evaluation.separation.shared_users == 75
    found = job.main(whole.replace(new_users=True)).evaluation
    assert found.off_policy.requests == sum(user not in known for user in users) < len(users)
    assert found.separation.shared_users == 0
    with pytest.raises(InvalidFieldError, match=r"new_users: got True; allowed: samples in .*none"):
        job.main(whole.replace(samples=str(run / "none"), new_users=True))


def test_nothing_is_fitted_on_held_out_rows(run, tmp_path):
    """What is said of a held-out request (the policy's density, critics, expectations) is the same beside 100 of the
    held-out requests as beside all, and with other held-out feedback; so is what critics alone estimate."""
    samples = tmp_path / "samples"
    write_samples(samples, persons=np.arange(1_000, 1_600), seed=6)
    settings = config(run, tmp_path, FixedGaussian(worlds.LOGGED.mu + .1, .5))
    settings = settings.replace(samples=str(samples))
    vocabulary = worlds.world().vocabulary
    actor = FusionActor.from_bundle(read_bundle(newest_bundle(settings.fusion, "fusion"), "fusion"))
    log = read_held_out(settings.holdout, vocabulary).log
    few = log.take(np.arange(len(log.state)) < 100)
    np.testing.assert_array_equal(policy_log_prob(actor, few), policy_log_prob(actor, log)[:100])
    moments = action_moments(actor)
    critic, = fit_critics(read_transitions(samples, vocabulary, 10**6), moments, [0.0])
    np.testing.assert_allclose(critic.predict(few.state, few.action), critic.predict(log.state, log.action)[:100])
    np.testing.assert_allclose(critic.expect(few.state, moments), critic.expect(log.state, moments)[:100])
    other = dataclasses.replace(log, feedback=1_000.0 - 7 * log.feedback[::-1])
    first, second = ({answer.estimator: answer for answer in estimate_all(Case.of(settings, actor, given), ESTIMATORS)}
                     for given in (log, other))
    for name in ("DM", "FQE"):
        np.testing.assert_array_equal(first[name].estimate, second[name].estimate)
    for name in ("NCIS", "IS"):
        assert (first[name].estimate != second[name].estimate).all()
        np.testing.assert_array_equal(first[name].ess, second[name].ess)


def test_rows_that_were_trained_on_are_refused(run, tmp_path):
    """One held-out row among the samples is leakage, and named."""
    samples = tmp_path / "samples"
    write_samples(samples, persons=np.arange(300), seed=5)  # the very log of the fixture
    with pytest.raises(InvalidFieldError, match=r"holdout: got '\d+ rows that are in .*allowed: rows that the policy "
                                                "was not trained on"):
        job.main(config(run, tmp_path, worlds.LOGGED).replace(samples=str(samples)))


def test_logs_beyond_memory_give_the_same(run, tmp_path):
    """NCIS and IS by Ray Data over all parts; the rest over the first requests."""
    policy = FixedGaussian(worlds.LOGGED.mu + .1, .5)
    plain = job.main(config(run, tmp_path / "a", policy).replace(cap=10.0)).evaluation
    streamed = job.main(config(run, tmp_path / "b", policy).replace(
        streaming=True, critic_rows=500, cap=10.0)).evaluation
    assert dataclasses.asdict(streamed.reading.account) | {"notes": ()} == dataclasses.asdict(plain.reading.account)
    for one, other in zip(streamed.estimates[:2], plain.estimates[:2], strict=True):
        assert (one.estimator, one.requests, one.users) == (other.estimator, other.requests, other.users)
        np.testing.assert_allclose(one.estimate, other.estimate, rtol=1e-6)
        np.testing.assert_allclose(one.ess, other.ess, rtol=1e-6)
        np.testing.assert_allclose(one.high - one.low, other.high - other.low, rtol=.15)
    assert streamed.estimates[2].requests < plain.estimates[2].requests


def write_samples(directory, persons, seed):
    """Transitions of these persons, as the ingest job writes them."""
    world = worlds.world()
    log = session_log(world, rollout(world, worlds.LOGGED, seed=seed, persons=persons), "declared")
    directory.mkdir()
    world.vocabulary.save(directory / "vocabulary.yaml")
    schema, last = sample_schema(world.vocabulary), log["last"].to_numpy()
    following = np.where(last, np.arange(len(last)), np.arange(len(last)) + 1)
    fields = [log["feedback"].combine_chunks().field(name).to_numpy() for name in world.vocabulary.behaviour_names]
    flat = pa.array(np.stack(fields, 1).ravel())
    columns = {"user_id": log["user_id"], "state": log["state"], "action": log["action"],
               "action_logp": log["action_logp"].cast(pa.float32()),
               "feedback": pa.FixedSizeListArray.from_arrays(flat, len(fields)),
               "next_state": log["state"].take(following), "done": pa.array(last.astype(np.float32))}
    arrays = {name: column.combine_chunks() for name, column in columns.items()
              if isinstance(column, pa.ChunkedArray)} | {name: column for name, column in columns.items()
                                                        if not isinstance(column, pa.ChunkedArray)}
    identity = {name: log[name] for name in ("request_id", "ts")}
    pq.write_table(complete(arrays | identity, schema), directory / "part.parquet")


CHROMIUM = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)
# Says of every image whether the browser could decode it.
PROBE = """<script>window.onload = () => { document.title = [...document.images].map(
    one => one.closest("section").id + ":" + (one.complete && one.naturalWidth > 0)).join(" ") }</script>"""


def browse(page):
    """(console lines, title after loading) of a page from disk, in a browser without a network."""
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
         "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=3000",
         f"--user-data-dir={page.parent / 'profile'}", page.as_uri()],
        capture_output=True, text=True, timeout=300, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.S)
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line], title.group(1) if title else ""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_shows_every_figure_and_complains_of_nothing(tmp_path):
    path = write_report(tmp_path / "report.html", DATA)
    console, title = browse(path)
    assert console == []
    assert title == "Recfuse report"
    text = path.read_text(encoding="utf-8")
    probed = tmp_path / "probed.html"
    probed.write_text(text.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    assert browse(probed)[1].split() == [f"{section.name}:true" for section in SECTIONS]
    # The same check sees a figure that cannot be decoded, and a script that fails.
    broken = text.replace("base64,PD94", "base64,AAAA", 1)
    probed.write_text(broken.replace("</body>", f"{PROBE}<script>nothing()</script></body>"), encoding="utf-8")
    console, title = browse(probed)
    assert title.split().count(f"{SECTIONS[0].name}:false") == 1
    assert any("ReferenceError" in line for line in console)
