"""The paths of the console: the one place that names them."""

from __future__ import annotations

HOME, INSPECTOR, BOARD, RUNS, RUN = "/", "/console/inspector", "/console/board", "/console/runs", "/console/run"
CONSOLE = "/console"  # where people look first; it shows what HOME does
PAGES = {HOME: "home", CONSOLE: "home", INSPECTOR: "inspector", BOARD: "board", RUNS: "runs", RUN: "run"}
STATIC = "/console/static"
OPTIONS, CANDIDATES, FEATURES, DECIDE = (f"/console/api/{name}" for name in (
    "options", "candidates", "features", "decide"))
BOARD_DATA, RUNS_DATA, RUN_DATA = (f"/console/api/{name}" for name in ("board", "runs", "run"))
ACTION = "/console/api/actions/{action}"

