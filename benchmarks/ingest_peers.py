"""What ingest does to the logs of `benchmarks.ingest_log`, written in Polars and in DuckDB, without Recfuse.

Check, quarantine with reason and row, first of each request, sessions, next states, zstd Parquet, account. Both hold
the log in memory as they like; neither reads types other than the log's own, nor looks at checksums of pages.

    python -m benchmarks.ingest_peers polars LOG OUTPUT
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from benchmarks.ingest_log import ACTIONS, STATES, VOCABULARY

_GAP = 1_800_000_000
_CONSTANT = .5 * math.log(2 * math.pi)
_SAMPLE = ("user_id", "request_id", "ts", "stage", "scene", "state", "action")


def with_polars(log: Path, output: Path) -> dict[str, Any]:
    """Returns the account."""
    import polars as pl

    column = pl.col
    density = sum((-.5 * ((column("action").arr.get(k).cast(pl.Float64) - column("mu").arr.get(k))
                          / column("sigma").arr.get(k))**2 - column("sigma").arr.get(k).cast(pl.Float64).log()
                   - _CONSTANT for k in range(ACTIONS)), pl.lit(0.0))
    feedback = [column("feedback").struct.field(name) for name in VOCABULARY.behaviour_names]
    faults = {
        **{name: column(name).is_null() | (column(name) == "") for name in ("request_id", "user_id", "stage")},
        "scene": ~column("scene").is_in(list(VOCABULARY.scenes)).fill_null(False), "ts": column("ts").is_null(),
        # A sum is finite where all of its numbers are, unless they are huge.
        **{name: ~column(name).arr.sum().is_finite().fill_null(False) for name in ("state", "action", "mu")},
        "sigma": ~(column("sigma").arr.min() > 0).fill_null(False),
        "action_logp": ~((column("action_logp") - density).abs() < 1e-3).fill_null(False),
        "feedback": ~pl.all_horizontal([each.is_finite().fill_null(False) for each in feedback]) | (feedback[0] <= -1),
        "vocabulary_hash": (column("vocabulary_hash") != VOCABULARY.meaning).fill_null(False)}
    reason = pl.coalesce([pl.when(wrong).then(pl.lit(name)) for name, wrong in faults.items()])
    rows = pl.read_parquet(log / "*.parquet").drop("candidates", "candidates_total", "shown")
    rows = rows.with_columns(reason=reason)
    bad = rows.filter(column("reason").is_not_null())
    good = rows.filter(column("reason").is_null()).drop("reason")
    rows_in = len(rows)
    del rows
    again = good.filter(good["request_id"].is_duplicated()).sort(
        "request_id", "ts", "user_id", "action_logp", *(each for each in ("session_id", "stage", "scene", "position")))
    first = again.unique("request_id", keep="first", maintain_order=True)
    later = again.filter(again["request_id"].is_first_distinct().not_()).with_columns(reason=pl.lit("duplicate"))
    good = pl.concat([good.filter(good["request_id"].is_duplicated().not_()), first])
    (output / "quarantine").mkdir(parents=True)
    quarantine = pl.concat([bad, later])
    quarantine.select("reason", row=pl.struct(pl.exclude("reason")).struct.json_encode()).write_parquet(
        output / "quarantine" / "rows.parquet", compression="zstd")
    good = good.with_columns(session_id=column("session_id").fill_null("")).sort(
        "user_id", "session_id", "ts", "position", column("request_id").str.len_chars(), "request_id", nulls_last=True)
    together = pl.all_horizontal([(column(name) == column(name).shift(-1)).fill_null(False)
                                  for name in ("user_id", "session_id")])
    pause = (column("ts").shift(-1) - column("ts")).dt.total_microseconds()
    ended = ~together | ((column("session_id") == "") & (pause > _GAP)) | column("last").fill_null(False)
    open_end = (column("ts").max() - column("ts")).dt.total_microseconds() <= _GAP
    latest = column("ts") == column("ts").max().over("user_id")
    good = good.with_columns(end=ended, left=~together & ~column("last").fill_null(False) & open_end & latest)
    zeros = pl.lit(pl.Series([[0.0] * STATES], dtype=pl.Array(pl.Float32, STATES)))
    samples = good.select(
        *_SAMPLE, column("action_logp").cast(pl.Float32), "explored", column("left"),
        feedback=pl.concat_list(feedback).list.to_array(len(feedback)),
        next_state=pl.when(column("end")).then(zeros).otherwise(column("state").shift(-1)),
        done=(column("end") & ~column("left")).cast(pl.Float32),
        truncated=column("left").shift(-1).fill_null(False) & ~column("end"), model_version="model_version",
    ).filter(~column("left")).drop("left")
    samples.write_parquet(output / "part-0.parquet", compression="zstd", compression_level=1, row_group_size=1 << 17)
    return {"in": rows_in, "kept": len(samples), "quarantined": len(quarantine), "left_out": len(good) - len(samples),
            "sessions": int(samples["done"].sum()) + int(samples["truncated"].sum())}


def with_duckdb(log: Path, output: Path) -> dict[str, Any]:
    """Returns the account."""
    import duckdb

    (output / "quarantine").mkdir(parents=True)
    names = VOCABULARY.behaviour_names
    density = " + ".join(f"(-.5 * pow((action[{k}]::double - mu[{k}]) / sigma[{k}], 2) - ln(sigma[{k}]::double) "
                         f"- {_CONSTANT!r})" for k in range(1, ACTIONS + 1))
    scenes = ", ".join(f"'{scene}'" for scene in VOCABULARY.scenes)
    fine = " AND ".join(f"isfinite(feedback.{name})" for name in names)
    faults = {
        **{name: f"coalesce({name}, '') = ''" for name in ("request_id", "user_id", "stage")},
        "scene": f"NOT coalesce(scene IN ({scenes}), false)", "ts": "ts IS NULL",
        **{name: f"NOT coalesce(isfinite(list_sum({name}::float[])), false)" for name in ("state", "action", "mu")},
        "sigma": "NOT coalesce(list_min(sigma::float[]) > 0, false)",
        "action_logp": f"NOT coalesce(abs(action_logp - ({density})) < 1e-3, false)",
        "feedback": f"NOT coalesce({fine} AND feedback.{names[0]} > -1, false)",
        "vocabulary_hash": f"coalesce(vocabulary_hash <> '{VOCABULARY.meaning}', false)"}
    reason = " ".join(f"WHEN {wrong} THEN '{name}'" for name, wrong in faults.items())
    connection = duckdb.connect(config={"memory_limit": "8GB", "temp_directory": str(output / "spilled")})
    run = connection.execute
    run(f"""CREATE TABLE judged AS SELECT *, CASE {reason} END AS reason FROM (SELECT * EXCLUDE
            (candidates, candidates_total, shown) FROM read_parquet('{log}/*.parquet'))""")
    run("""CREATE TABLE later AS SELECT row FROM (SELECT rowid AS row, row_number() OVER (PARTITION BY request_id
           ORDER BY ts, user_id, action_logp, session_id, position) AS place FROM judged WHERE reason IS NULL)
           WHERE place > 1""")
    run(f"""COPY (SELECT coalesce(reason, 'duplicate') AS reason, to_json(judged) AS row FROM judged WHERE reason IS NOT
            NULL OR rowid IN (SELECT row FROM later)) TO '{output}/quarantine/rows.parquet' (COMPRESSION zstd)""")
    key = ("PARTITION BY user_id, coalesce(session_id, '') "
           "ORDER BY ts, position NULLS LAST, length(request_id), request_id")
    zeros = f"[{', '.join(['0'] * STATES)}]::float[{STATES}]"
    run(f"""COPY (WITH kept AS (SELECT * FROM judged WHERE reason IS NULL AND rowid NOT IN (SELECT row FROM later)),
        ordered AS (SELECT *, lead(state) OVER w AS following, lead(ts) OVER w AS then_ts,
            max(ts) OVER (PARTITION BY user_id) AS latest FROM kept WINDOW w AS ({key})),
        ended AS (SELECT *, then_ts IS NULL OR coalesce(last, false) OR (session_id IS NULL AND
            epoch_us(then_ts) - epoch_us(ts) > {_GAP}) AS stop, then_ts IS NULL AND NOT coalesce(last, false) AND
            ts = latest AND epoch_us((SELECT max(ts) FROM judged)) - epoch_us(ts) <= {_GAP} AS cut FROM ordered),
        closed AS (SELECT *, coalesce(lead(cut) OVER w, false) AND NOT stop AS truncated FROM ended WINDOW w AS ({key}))
        SELECT {', '.join(_SAMPLE)}, action_logp::float AS action_logp, explored,
            [{', '.join(f'feedback.{name}' for name in names)}]::float[{len(names)}] AS feedback,
            CASE WHEN stop THEN {zeros} ELSE following END AS next_state,
            (stop AND NOT cut)::int::float AS done, truncated, model_version FROM closed WHERE NOT cut)
        TO '{output}/part-0.parquet' (COMPRESSION zstd, COMPRESSION_LEVEL 1, ROW_GROUP_SIZE 131072)""")

    def number(query: str) -> int:
        found = run(query).fetchone()
        assert found is not None
        return int(found[0])

    kept = f"read_parquet('{output}/part-0.parquet')"
    account = {"in": number("SELECT count(*) FROM judged"), "kept": number(f"SELECT count(*) FROM {kept}"),
               "quarantined": number("SELECT count(*) FROM judged WHERE reason IS NOT NULL")
               + number("SELECT count(*) FROM later"),
               "sessions": number(f"SELECT sum(done) + sum(truncated::int) FROM {kept}")}
    return account | {"left_out": account["in"] - account["kept"] - account["quarantined"]}


PEERS = {"polars": with_polars, "duckdb": with_duckdb}

if __name__ == "__main__":
    print(json.dumps(PEERS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))))
