"""The tables below a run's figures: data in, columns and cells as text out, no cells where nothing was measured."""

from __future__ import annotations

from recfuse.report.data import ReportData, number
from recfuse.report.section import Table


def ab_test(data: ReportData) -> Table:
    """A row a measure."""
    if data.ab_test is None:
        return [], []
    base, *others = data.ab_test["arms"]
    rows = []
    for index, measure in enumerate(data.ab_test["measures"]):
        row = [measure, f"{base['mean'][index]:,.4g}"]
        for arm in others:
            middle, low, high = (100 * number(arm[key][index]) for key in ("estimate", "low", "high"))
            row.append(f"{middle:+.2f}% [{low:+.2f}, {high:+.2f}]")
        row += [f"{100 * number(arm['detectable'][index]):.2f}%" for arm in others if "detectable" in arm]
        rows.append(row)
    detectable = [f"{arm['name']} finds" for arm in others if "detectable" in arm]
    return ["measure", f"{base['name']}, mean", *(arm["name"] for arm in others), *detectable], rows


def weights(data: ReportData) -> Table:
    """A row a group of requests."""
    if data.weights is None:
        return [], []
    rows = [[f"{group['feature']} {group['value']}".strip(), f"{group['requests']:,}",
             *(f"{number(value):.3f}" for value in group["mean"])] for group in data.weights["groups"]]
    return ["group", "requests", *data.weights["parameters"]], rows


def scorer(data: ReportData) -> Table:
    """A row a scene and task."""
    columns = ["scene", "task", "rows", "positives", "auc", "gauc", "calibration_error", "predicted_over_observed"]
    rows = [[str(row[column]) if column in ("scene", "task") else f"{number(row.get(column)):,.4g}"
             for column in columns] for row in data.scorer]
    return columns, rows


def response(data: ReportData) -> Table:
    """A row a behaviour."""
    if data.response is None or "positives" not in data.response:
        return [], []
    rows = []
    for name, area in data.response["auc"].items():
        low, high = map(number, data.response["interval"][name])
        positives = f"{data.response['positives'][name]:,}"
        rows.append([name, positives, f"{number(area):.3f}", f"{low:.3f}", f"{high:.3f}"])
    return ["behaviour", "positives", "AUC", "low", "high"], rows


def calibration(data: ReportData) -> Table:
    """A row a scene and measure."""
    rows = [[str(scene), str(name), f"{number(simulated):.5g}", f"{number(real):.5g}"]
            for scene, name, simulated, real in data.calibration]
    return ["scene", "measure", "simulated", "real"], rows
