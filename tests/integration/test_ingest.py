"""Ray Data ingest on real files: the account, the quarantine, independence of files and blocks, resume."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import session_logs
from clusters import killing
from session_logs import loose_table, random_rows, row, table, vocabulary

from recfuse.config import InvalidFieldError
from recfuse.logs.config import IngestConfig
from recfuse.logs.ingest import ingest
from recfuse.logs.sessions import SessionRule, to_samples

pytestmark = pytest.mark.usefixtures("local_ray")


def run(tmp_path, *tables, name="logs", **changes):
    logs = session_logs.write(tmp_path / name, *tables)
    return ingest(IngestConfig(logs=str(logs), output=str(tmp_path / f"{name}-samples"), **changes))


def read(result) -> pa.Table:
    content = pq.read_table(result.samples, schema=None)
    return content.sort_by([("user_id", "ascending"), ("action_logp", "ascending")])


def test_samples_equal_those_of_one_table_in_memory(tmp_path):
    rows = random_rows(400)
    result = run(tmp_path, table(rows[:150]), table(rows[150:]))
    end = int(table(rows)["ts"].cast(pa.int64()).to_numpy().max())
    expected = to_samples(table(rows), vocabulary(), SessionRule(log_end=end))
    found = pa.concat_tables(pq.read_table(path) for path in sorted((tmp_path / "logs-samples").glob("part-*")))
    key = [("user_id", "ascending"), ("done", "ascending")]
    states = [sorted(map(str, content.sort_by(key).to_pylist())) for content in (found, expected.table)]
    assert states[0] == states[1]
    account = result.account
    assert (account.rows_in, account.kept) == (400, 400 - expected.left_out)
    assert (account.left_out, account.truncated, account.ties) == (
        expected.left_out, expected.truncated, expected.ties)
    assert expected.truncated > 0
    assert result.sessions == sum(expected.table["done"].to_pylist()) + sum(expected.table["truncated"].to_pylist())


def test_files_blocks_and_order_do_not_matter(tmp_path):
    rows = random_rows(300, seed=1)
    whole = run(tmp_path, table(rows), name="whole")
    split = run(tmp_path, *(table(rows[::-1][k::8]) for k in range(8)), name="split")
    assert whole.fingerprint == split.fingerprint


def test_every_bad_row_and_file_is_accounted_for(tmp_path):
    good = random_rows(50, seed=2)
    bad = [row(1000, user="v", sigma=[0.0, 1.0]), row(1001, user="v", state=[1.0])]  # no row of this session is good
    duplicates = [good[0], {**good[1], "user_id": "somebody else", "ts": session_logs.EPOCH.replace(year=2030)}]
    logs = session_logs.write(tmp_path / "logs", table(good), loose_table(bad), table(duplicates),
                              table([row(2000), row(2001)]).drop_columns("action"))
    (logs / "notes.parquet").write_text("this is no Parquet file")
    named = (logs / "log-0.parquet").read_bytes()
    (logs / "names.parquet").write_bytes(named.replace(b"model_version", b"model\xff\xff\xff\xff\xff\xff\xff\xff"))
    result = ingest(IngestConfig(logs=str(logs), output=str(tmp_path / "samples"), quarantine_limit=0.2))
    account = result.account
    assert (account.rows_in, account.kept + account.left_out) == (56, 50)
    assert dict(account.quarantined) == {
        "sigma (allowed: numbers > 0)": 1,
        "state (allowed: a list of 3 numbers)": 1,
        "request_id (allowed: unique: the first row of a request is kept)": 2,
        "action (allowed: columns request_id, user_id, ts, stage, scene, state, action, feedback)": 2,
    }
    assert set(account.unreadable_files) == {"names.parquet", "notes.parquet"}
    assert all("not a Parquet file" in why for why in account.unreadable_files.values())
    quarantine = pq.read_table(tmp_path / "samples" / "quarantine").to_pylist()
    assert sorted((reason["source"], reason["field"], reason["value"]) for reason in quarantine) == [
        ("after reading", "request_id", '"r0"'), ("after reading", "request_id", '"r1"'),
        ("log-1.parquet[0]", "sigma", "[0.0, 1.0]"), ("log-1.parquet[0]", "state", "[1.0]"),
        ("log-3.parquet[0]", "action", "missing column"), ("log-3.parquet[0]", "action", "missing column")]
    clean = run(tmp_path, table(good), name="clean")
    assert result.fingerprint == clean.fingerprint, "the good rows are the samples that they are without the bad ones"
    assert result.sessions == clean.sessions, "a session of which no row is good is none"


def test_a_flipped_byte_in_a_file_costs_its_row_group_alone(tmp_path):
    rows = random_rows(80, seed=4)
    logs = session_logs.write(tmp_path / "logs")
    path = logs / "log.parquet"
    pq.write_table(table(rows), path, row_group_size=40, write_page_checksum=True)
    content = bytearray(path.read_bytes())
    begin = pq.read_metadata(path).row_group(0).column(4).dictionary_page_offset
    content[begin - 1] ^= 1  # the last byte of the column before it
    path.write_bytes(content)
    result = ingest(IngestConfig(logs=str(logs), output=str(tmp_path / "samples"), quarantine_limit=0.5))
    assert (result.account.rows_in, result.account.kept + result.account.left_out) == (80, 40)
    assert dict(result.account.quarantined) == {"row group (allowed: readable Parquet)": 40}
    reason = pq.read_table(tmp_path / "samples" / "quarantine").to_pylist()[0]
    assert reason["source"] == "log.parquet[0]"
    assert "checksum" in reason["value"].lower(), reason["value"]


def test_a_rerun_resumes_and_a_change_does_not(tmp_path):
    rows = random_rows(200)
    first = run(tmp_path, table(rows))
    again = ingest(IngestConfig(logs=str(tmp_path / "logs"), output=first.samples))
    assert again.resumed
    assert (again.fingerprint, again.account, again.sessions) == (first.fingerprint, first.account, first.sessions)
    wider = ingest(IngestConfig(logs=str(tmp_path / "logs"), output=first.samples, gap_minutes=1e9))
    assert not wider.resumed
    assert wider.sessions < first.sessions


def test_workers_that_are_killed_change_nothing(tmp_path):
    """One in each step of the exchange; `pytest -m chaos` kills for a minute, and a node."""
    logs = session_logs.write_many(tmp_path / "logs", rows=40_000, files=4)
    calm = ingest(IngestConfig(logs=str(logs), output=str(tmp_path / "calm"), quarantine_limit=0.1))
    raylet = ray._private.worker._global_node.all_processes["raylet"][0].process.pid
    with killing(raylet, "(read)", "(deduplicate)", "(cut)") as killed:
        disturbed = ingest(IngestConfig(logs=str(logs), output=str(tmp_path / "killed"), quarantine_limit=0.1))
    assert len(killed) == 3, killed
    assert (disturbed.fingerprint, disturbed.account) == (calm.fingerprint, calm.account)
    assert disturbed.account.kept + disturbed.account.left_out == 36_000
    assert not list((tmp_path / "killed").rglob("_*")), "nothing half written is left"


def test_an_interrupted_run_is_cleaned_up(tmp_path):
    rows = random_rows(30)
    first = run(tmp_path, table(rows))
    (tmp_path / "logs-samples" / "account.json").unlink()
    (tmp_path / "logs-samples" / "part-00000.parquet").write_bytes(b"half a file")
    again = ingest(IngestConfig(logs=str(tmp_path / "logs"), output=first.samples))
    assert (again.fingerprint, again.resumed) == (first.fingerprint, False)


BAD_INPUT = [
    (lambda logs: None, "logs", "a directory with at least one Parquet file"),
    (lambda logs: session_logs.write(logs, table([])), "logs", "the files are empty"),
    (lambda logs: (logs / "a.parquet").write_text("no"), "logs", "not a Parquet file"),
]


@pytest.mark.parametrize(("prepare", "field", "message"), BAD_INPUT, ids=["no file", "no row", "no Parquet"])
def test_input_without_a_readable_row_is_an_error(tmp_path, prepare, field, message):
    logs = session_logs.write(tmp_path / "logs")
    prepare(logs)
    with pytest.raises(InvalidFieldError) as error:
        ingest(IngestConfig(logs=str(logs), output=str(tmp_path / "samples")))
    assert error.value.field == field
    assert message in str(error.value)


def test_a_foreign_directory_is_not_overwritten(tmp_path):
    (tmp_path / "logs-samples").mkdir()
    (tmp_path / "logs-samples" / "thesis.txt").write_text("dear")
    with pytest.raises(InvalidFieldError, match=r"thesis.txt"):
        run(tmp_path, table(random_rows(3)))
    assert (tmp_path / "logs-samples" / "thesis.txt").exists()


def test_what_is_quarantined_beyond_the_limit_ends_the_job_after_it_has_written(tmp_path):
    rows = random_rows(90) + [row(1000 + k, user=f"v{k}", stage="polish") for k in range(10)]
    with pytest.raises(InvalidFieldError, match=r"logs: got '10.0% of the rows quarantined'.*5.0%.*stage"):
        run(tmp_path, table(rows))
    assert sum(pq.read_table(path).num_rows for path in (tmp_path / "logs-samples").glob("part-*")) > 80
    assert pq.read_table(tmp_path / "logs-samples" / "quarantine").num_rows == 10
    again = IngestConfig(logs=str(tmp_path / "logs"), output=str(tmp_path / "logs-samples"), quarantine_limit=0.1)
    assert ingest(again).resumed, "what was written is whole"
    with pytest.raises(InvalidFieldError, match=r"logs: got '0 of 10 rows kept'"):
        run(tmp_path, table(rows[90:]), name="none", quarantine_limit=1.0)


def test_swapped_logs_and_output_delete_nothing(tmp_path):
    for name in ("mine", "yours"):
        session_logs.write(tmp_path / name, table(random_rows(3)))
        (tmp_path / name / "log-0.parquet").rename(tmp_path / name / "part-00000-6d2c-c000.snappy.parquet")
    before = sorted((path, path.stat().st_size) for path in tmp_path.rglob("*") if path.is_file())
    with pytest.raises(InvalidFieldError, match=r"got 'part-00000-6d2c.*nothing in .*yours but what ingest wrote"):
        ingest(IngestConfig(logs=str(tmp_path / "mine"), output=str(tmp_path / "yours")))
    kept = [(path, path.stat().st_size) for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    assert [each for each in kept if each[0].name != ".recfuse-lock"] == before


@pytest.mark.parametrize(("logs", "output"), [("a", "a/samples"), ("a/deep", "a"), ("a", "./a"), ("a/deep", "a/deep/")])
def test_an_output_around_or_in_the_log_deletes_nothing(tmp_path, monkeypatch, logs, output):
    monkeypatch.chdir(tmp_path)
    session_logs.write(tmp_path / logs, table(random_rows(3)))
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    with pytest.raises(InvalidFieldError, match=r"output: got"):
        ingest(IngestConfig(logs=logs, output=output))
    assert [path for path in sorted(tmp_path.rglob("*")) if path.is_file() and path.name != ".recfuse-lock"] == before


def test_a_missing_vocabulary_is_an_error(tmp_path):
    logs = session_logs.write(tmp_path / "logs", table(random_rows(3)))
    (logs / "vocabulary.yaml").unlink()
    with pytest.raises(InvalidFieldError, match=r"vocabulary.*travels with the log"):
        ingest(IngestConfig(logs=str(logs), output=str(tmp_path / "samples")))
