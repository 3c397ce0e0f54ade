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


def off_policy(data: ReportData) -> Table:
    """A row a behaviour, of the first estimator."""
    if data.off_policy is None or data.off_policy.get("refused"):
        return [], []
    first = data.off_policy
    rows = [[name, *(f"{number(first[key][index]):.5g}" for key in ("logged", "estimate", "low", "high"))]
            for index, name in enumerate(first["behaviours"])]
    return ["behaviour, per request", "log", "estimate", "low", "high"], rows


def estimators(data: ReportData) -> Table:
    """A row an estimator; a refused one says why."""
    answers = (data.off_policy or {}).get("estimators", ())
    if not answers:
        return [], []
    behaviours = answers[0]["behaviours"]
    rows = []
    for answer in answers:
        if answer["refused"]:
            cells = [answer["refused"], *[""] * (len(behaviours) - 1)]
        else:
            vectors = zip(answer["estimate"], answer["low"], answer["high"], strict=True)
            cells = [f"{number(estimate):.4g} [{number(low):.4g}, {number(high):.4g}]"
                     for estimate, low, high in vectors]
        rows.append([answer["estimator"], answer["per"], f"{number(answer['effective_sample_size'][0]):,.0f}",
                     f"{number(answer['mean_ratio']):.2f}", *cells])
    return ["estimator", "per", "ESS", "mean ratio", *behaviours], rows


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
