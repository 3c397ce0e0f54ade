"""Ingest beside the same work in Polars and in DuckDB, on the same generated log.

    python -m benchmarks.ingest --rows 3000000 [--peers polars duckdb] [--scratch DIRECTORY]

Each is a program of its own. Prints rows per CPU second of all of its processes, the peak of the memory that they have
for themselves, and whether account and samples are the same: every sample, column by column, bit by bit.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.ingest_log import write_log
from benchmarks.process_tree import Used, watch
from recfuse.logs.ids import keys_of
from recfuse.runtime.console import table

NUMBERS = ("state", "action", "next_state", "feedback", "action_logp", "done", "truncated", "explored", "ts")
TEXTS = ("user_id", "request_id", "stage", "scene", "model_version")


def sample_digests(directory: Path) -> np.ndarray:
    """uint64[n], of every sample, sorted: equal in two directories that hold the same samples in any order."""
    digests = [_digests(batch) for path in sorted(directory.glob("part-*.parquet"))
               for batch in pq.ParquetFile(path).iter_batches(1 << 16, columns=[*NUMBERS, *TEXTS])]
    return np.sort(np.concatenate(digests))


def _digests(batch: pa.RecordBatch) -> np.ndarray:
    """A sum of all values, each times a number of its place."""
    rows = batch.num_rows
    columns = [_bits(batch[name]).reshape(rows, -1) for name in NUMBERS]
    columns += [keys_of(batch[name].to_pylist()).view(np.uint64).reshape(rows, 1) for name in TEXTS]
    total = np.zeros(rows, np.uint64)
    width = sum(column.shape[1] for column in columns)
    factors = np.random.default_rng(0).integers(1 << 62, size=width, dtype=np.uint64)
    for column in columns:
        here, factors = factors[:column.shape[1]], factors[column.shape[1]:]
        mixed = (column ^ (column >> np.uint64(15))) * (2 * here + np.uint64(1))
        total += (mixed ^ (mixed >> np.uint64(29))).sum(1, dtype=np.uint64)
    return total


def _bits(column: pa.Array) -> np.ndarray:
    """uint64[...]: the bits of each number."""
    if pa.types.is_nested(column.type):
        column = column.flatten()
    if pa.types.is_timestamp(column.type):
        return pc.cast(pc.cast(column, pa.timestamp("us", column.type.tz)), pa.int64()).to_numpy().view(np.uint64)
    if pa.types.is_boolean(column.type):
        return column.to_numpy(zero_copy_only=False).astype(np.uint64)
    # A zero has one sign, however it was made.
    return (column.to_numpy(zero_copy_only=False) + np.float32(0)).view(np.uint32).astype(np.uint64)


def our_account(directory: Path) -> dict[str, int]:
    """In the words of the peers."""
    saved = json.loads((directory / "account.json").read_text())
    account = saved["account"]
    return {"in": account["rows_in"], "kept": account["kept"], "quarantined": sum(account["quarantined"].values()),
            "left_out": account["left_out"], "sessions": saved["sessions"]}


def measure(name: str, log: Path, output: Path) -> tuple[Used, dict[str, int]]:
    """What a program used, and its account."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if name == "recfuse":
        used = watch([sys.executable, "-m", "recfuse.jobs.ingest", "--logs", str(log), "--output", str(output),
                      "--quarantine-limit", "1"], environment)
        return used, our_account(output)
    used = watch([sys.executable, "-m", "benchmarks.ingest_peers", name, str(log), str(output)], environment)
    return used, json.loads(used.output.splitlines()[-1])


def started() -> float:
    """CPU seconds of a Ray that starts, runs nothing and ends."""
    code = "from recfuse.runtime.cluster import cluster\nwith cluster(): pass"
    return watch([sys.executable, "-c", code], os.environ | {"OMP_NUM_THREADS": "1"}).processor


def report(rows: int, used: dict[str, Used], same: dict[str, str], idle: float) -> None:
    """Prints the figures."""
    best = {name: rows / each.processor for name, each in used.items()}
    lines = []
    for name, each in used.items():
        ratio = f"{best['recfuse'] / best[name]:.2f}" if name != "recfuse" else ""
        lines.append([name, f"{each.processor:.1f}", f"{best[name]:,.0f}", f"{each.seconds:.1f}",
                      f"{each.private / 2**20:,.0f}", f"{each.largest / 2**20:,.0f}", ratio, same[name]])
    table(f"Ingest of {rows:,} rows", ["", "CPU s", "rows/CPU s", "s", "private MiB", "of one process",
                                       "recfuse over it", "account, samples"], lines)
    without = rows / max(used["recfuse"].processor - idle, 1e-9)
    print(f"A Ray that starts and ends takes {idle:.1f} CPU s of Recfuse's; without it {without:,.0f} rows/CPU s"
          + "".join(f", {without / best[name]:.2f} of {name}" for name in used if name != "recfuse"))


def versions() -> str:
    """Of what took part, and the machine."""
    found = []
    for name in ("ray", "pyarrow", "numpy", "polars", "duckdb"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return f"{', '.join(found)}; Python {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}"


def main() -> None:
    """Generates the log where it is not there yet, measures, compares and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peers", nargs="*", default=["polars", "duckdb"], choices=["polars", "duckdb"])
    parser.add_argument("--scratch", help="keeps log and outputs here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(arguments.scratch or temporary)
        log = scratch / f"log-{arguments.rows}-{arguments.seed}"
        if not log.exists():
            write_log(log, arguments.rows, arguments.seed)
        used, accounts, digests = {}, {}, {}
        for name in ("recfuse", *arguments.peers):
            with tempfile.TemporaryDirectory(dir=scratch) as output:
                used[name], accounts[name] = measure(name, log, Path(output) / "samples")
                digests[name] = sample_digests(Path(output) / "samples")
        same = {name: f"{'same' if accounts[name] == accounts['recfuse'] else 'other'}, "
                      f"{'same' if np.array_equal(digests[name], digests['recfuse']) else 'other'}" for name in used}
        report(arguments.rows, used, same, started())
        print(f"account: {accounts['recfuse']}\n{versions()}")


if __name__ == "__main__":
    main()
