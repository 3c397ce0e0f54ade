"""One self-contained HTML page on a training run: plain values in, a file out that opens without a network.

Every figure has axes with units and one sentence on what it shows. What was not measured is said to be missing, with
the job that measures it.
"""

from __future__ import annotations

import base64
import html
import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Plain = Mapping[str, Any]
PHASES = {"critics": "Critics", "cloning": "Imitation of the logged policy",
          "stage_one": "Stage one: short-term policies", "stage_two": "Stage two: the long-term policy"}
# Of stage one the held-out loss is of another kind: what judges its stopping.
_COMPARABLE = ("critics", "cloning", "stage_two")
# Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
_STYLE = {"font.size": 9, "axes.grid": True, "grid.alpha": .3, "axes.spines.top": False, "axes.spines.right": False,
          "svg.hashsalt": "recfuse", "figure.constrained_layout.use": True, "axes.axisbelow": True}


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Plain values, as the jobs' JSON files hold them; what is None or empty was not measured.

    Attributes:
        account: rows_in, kept, quarantined {reason: rows}.
        history: one mapping per training iteration: phase, iteration, loss, explained_variance/BEHAVIOUR, ….
        ab_test: measures, level, arms [{name, users, mean, estimate, low, high}]; the first arm is the base.
        off_policy: behaviours, estimate, low, high, logged, effective_sample_size, requests, users, refused.
        scorer: [{scene, task, rows, positives, auc, calibration_error, predicted_over_observed, …}].
        response: {auc: {behaviour: value}, …}, of the simulator's response model.
        calibration: [[scene, measure, simulated, real]].
        serving: {latency_ms: [numbers], endpoint}.
        weights: {parameters, logged: [M], groups: [{feature, value, requests, mean: [M]}]}; the first group is all.
        subject: title lines: what was trained on what.
    """

    account: Plain | None = None
    history: Sequence[Plain] = ()
    ab_test: Plain | None = None
    off_policy: Plain | None = None
    scorer: Sequence[Plain] = ()
    response: Plain | None = None
    calibration: Sequence[Sequence[Any]] = ()
    serving: Plain | None = None
    weights: Plain | None = None
    subject: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """One figure of the page: id, heading, the sentence on what it shows, and who measures it."""

    name: str
    title: str
    sentence: str
    job: str
    draw: Callable[[Any], Figure | None]
    rows: Callable[[Any], tuple[Sequence[str], list[list[str]]]] | None = None


def write_report(path: str | Path, data: Any, sections: Sequence[Section] | None = None,
                 title: str = "Recfuse report") -> Path:
    """Writes the page, whole or not at all, and returns its path; see `render`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(render(data, sections, title), encoding="utf-8")
    os.replace(temporary, path)
    return path


def render(data: Any, sections: Sequence[Section] | None = None, title: str = "Recfuse report") -> str:
    """The page as a string.

    Args:
        data: what the sections draw; ReportData for those of this module, which are the default.
    """
    sections = SECTIONS if sections is None else sections
    with rc_context(_STYLE):
        body = "\n".join(_section(section, data) for section in sections)
    subject = "".join(f"<dt>{_text(key)}</dt><dd>{_text(value)}</dd>" for key, value in data.subject.items())
    opening = _opening(data) if isinstance(data, ReportData) else ""
    contents = "".join(f'<li><a href="#{section.name}">{_text(section.title)}</a></li>' for section in sections)
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_CSS}</style></head>\n'
            f'<body><h1>{_text(title)}</h1><dl>{subject}</dl>{opening}<nav><ul>{contents}</ul></nav>\n{body}\n</body></html>\n')


_CSS = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;background:#fff}
h1{font-size:1.7rem}h2{font-size:1.2rem;margin-top:2.5rem;border-top:1px solid #ddd;padding-top:1rem}
img{width:100%;height:auto}table{border-collapse:collapse;font-size:.85rem;margin:.5rem 0}
td,th{padding:.2rem .6rem;text-align:right;border-bottom:1px solid #eee}td:first-child,th:first-child{text-align:left}
dl{display:grid;grid-template-columns:max-content auto;gap:.1rem 1rem}dt{color:#666}dd{margin:0}
nav ul{columns:2;padding-left:1.2rem}section{overflow-x:auto}.missing{color:#8a4b00}summary{cursor:pointer;color:#555}
"""


WORDS = {
    "fusion policy": "decides per request how much each prediction of a candidate (click, like, …) weighs in its score",
    "logged policy": "the one that was serving when the logs were written; it explores around its mean",
    "logged_mean": "the same without exploring: what a policy gains beyond it, it has learned",
    "cem": "one weight vector for everybody, searched in the simulator itself by the cross-entropy method",
    "scene": "a page of recommendations; a task is a behaviour that is predicted there",
    "critic": "predicts what a behaviour will still bring in a session; one per behaviour",
    "off-policy estimate": "what a policy would have brought, from the log of another one",
    "effective sample size (ESS)": "how many requests the log is worth for that, since it holds few actions that the "
                                   "policy in question would take; too few, and no number is given",
    "interval": "covers the truth 95 times in 100; of A/B tests and off-policy estimates it is drawn over users",
    "AUC": "how often a positive is ranked above a negative; .5 is chance, 1 is perfect",
}


def _opening(data: ReportData) -> str:
    """What was found, in sentences, and the words of the page."""
    found = "".join(f"<li>{_text(sentence)}</li>" for sentence in summary(data))
    words = "".join(f"<dt>{_text(word)}</dt><dd>{_text(meaning)}</dd>" for word, meaning in WORDS.items())
    head = f'<h2 id="summary">What was found</h2><ul class="found">{found}</ul>' if found else ""
    return f"{head}<details><summary>Words on this page</summary><dl>{words}</dl></details>"


def summary(data: ReportData) -> list[str]:
    """What each instrument found, in a sentence; nothing of what was not measured."""
    return [*_ab_sentences(data), *_off_policy_sentences(data), *_model_sentences(data)]


def _ab_sentences(data: ReportData) -> list[str]:
    if data.ab_test is None:
        return []
    (base, *arms), measures = data.ab_test["arms"], data.ab_test["measures"]
    sentences = []
    if aa := data.ab_test.get("aa"):
        sentences.append(f"Tested {aa['runs']} times against itself, {base['name']} seemed different in "
                         f"{np.mean(_numbers(aa['false'])):.1%} of the intervals; "
                         f"{1 - data.ab_test['level']:.0%} are expected.")
    for arm in arms:
        surely = _numbers(arm.get("adjusted", [None] * len(measures))) < 1 - data.ab_test["level"]
        effect, low, high = (100 * _numbers(arm[key]) for key in ("estimate", "low", "high"))
        others = [f"{name} {effect[index]:+.1f}%" for index, name in enumerate(measures) if index and surely[index]]
        sentences.append(
            f"In the simulator {arm['name']} brought {effect[0]:+.1f}% [{low[0]:.1f}, {high[0]:.1f}] {measures[0]} per "
            f"user against {base['name']}; sure among the other measures: {', '.join(others) or 'none'}.")
    return sentences


def _off_policy_sentences(data: ReportData) -> list[str]:
    found = data.off_policy
    if found is None or not _number(found["logged"][0]):
        return []
    if found.get("refused"):
        return [f"The held-out log gives no estimate: {found['refused']}."]
    middle, low, high = (100 * (_number(found[key][0]) / _number(found["logged"][0]) - 1)
                         for key in ("estimate", "low", "high"))
    return [f"From the held-out log the policy is estimated at {middle:+.1f}% [{low:.1f}, {high:.1f}] "
            f"{found['behaviours'][0]} per request (NCIS), states as they were logged."]


def _model_sentences(data: ReportData) -> list[str]:
    sentences = []
    ratios = np.array([_number(simulated) / _number(real) for _, _, simulated, real in data.calibration
                       if _number(real) > 0])
    if len(ratios):
        sentences.append(f"The simulator is within 10% of the log in {(abs(ratios - 1) <= .1).sum()} of {len(ratios)} "
                         "measures that are not 0.")
    pooled = [f"{row['task']} {_number(row['auc']):.3f}" for row in data.scorer if row["scene"] == "all"]
    if pooled:
        sentences.append(f"The scorer's AUC over all scenes on the last day: {', '.join(pooled)}.")
    return sentences


def _section(section: Section, data: Any) -> str:
    figure = section.draw(data)
    parts = [f'<section id="{section.name}"><h2>{_text(section.title)}</h2>']
    if figure is None:
        parts.append(f'<p class="missing">Not measured in this run; <code>{_text(section.job)}</code> measures it.</p>')
    else:
        parts.append(f"<p>{_text(section.sentence)}</p>"
                     f'<figure><img alt="{_text(section.title)}" src="{_inline(figure)}"></figure>')
    if section.rows is not None:
        columns, rows = section.rows(data)
        if rows:
            parts.append(f"<details><summary>The numbers</summary>{_table(columns, rows)}</details>")
    return "".join([*parts, "</section>"])


def _inline(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _table(columns: Sequence[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(value: object) -> str:
    return html.escape(str(value))


def _number(value: Any) -> float:
    """A number, NaN where JSON has null."""
    return math.nan if value is None else float(value)


def _numbers(values: Sequence[Any]) -> np.ndarray:
    return np.array([_number(value) for value in values])


def _say(axes: Axes, text: str) -> None:
    axes.text(.5, .5, text, ha="center", va="center", wrap=True, transform=axes.transAxes)


def _account(data: ReportData) -> Figure | None:
    if data.account is None:
        return None
    parts = {"kept": data.account["kept"], **data.account.get("quarantined", {})}
    figure = Figure(figsize=(8, .6 + .35 * len(parts)))
    axes = figure.subplots()
    names, rows = list(parts)[::-1], list(parts.values())[::-1]
    bars = axes.barh(names, rows, color=[COLOURS[0] if name == "kept" else COLOURS[1] for name in names])
    axes.bar_label(bars, [f"{value:,}" for value in rows], padding=3)
    axes.set_xlabel("requests (rows of the session log)")
    axes.margins(x=.12)
    return figure


def _learning_curves(data: ReportData) -> Figure | None:
    phases = [phase for phase in PHASES if any(entry["phase"] == phase for entry in data.history)]
    if not phases:
        return None
    figure = Figure(figsize=(8, 2.4 * ((len(phases) + 1) // 2)))
    for panel, phase in enumerate(phases):
        axes = figure.add_subplot((len(phases) + 1) // 2, 2, panel + 1)
        entries = [entry for entry in data.history if entry["phase"] == phase]
        passes = [entry["iteration"] + 1 for entry in entries]
        axes.plot(passes, _numbers([entry["loss"] for entry in entries]), "o-", color=COLOURS[0], ms=3,
                  label="samples that train")
        if phase in _COMPARABLE and any("holdout_loss" in entry for entry in entries):
            axes.plot(passes, _numbers([entry.get("holdout_loss") for entry in entries]), "s--", color=COLOURS[1], ms=3,
                      label="samples held out")
            axes.legend(frameon=False)
        axes.set(title=PHASES[phase], xlabel="passes over the samples", ylabel="loss (no unit)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _explained_variance(data: ReportData) -> Figure | None:
    prefix = "explained_variance/"
    entries = [entry for entry in data.history if entry["phase"] == "critics"]
    names = sorted({key.removeprefix(prefix) for entry in entries for key in entry if key.startswith(prefix)})
    if not names:
        return None
    figure = Figure(figsize=(8, 3))
    axes = figure.subplots()
    for index, name in enumerate(names):
        values = _numbers([entry.get(prefix + name) for entry in entries])
        axes.plot([entry["iteration"] + 1 for entry in entries], values, "o-", ms=3,
                  color=COLOURS[index % len(COLOURS)], label=name)
    axes.axhline(0, color="#666", lw=.8)
    axes.set(xlabel="passes over the samples", ylabel="explained variance (share)")
    axes.legend(ncols=3, frameon=False)
    return figure


def _ab_arms(data: ReportData) -> tuple[list[Plain], list[int]]:
    """The arms other than the base, and the measures that a figure can hold."""
    assert data.ab_test is not None
    return list(data.ab_test["arms"])[1:], list(range(len(data.ab_test["measures"])))


def _ab_test(data: ReportData) -> Figure | None:
    if data.ab_test is None:
        return None
    arms, measures = _ab_arms(data)
    figure = Figure(figsize=(8, 1.2 + .13 * len(measures) * (len(arms) + 1)))
    axes = figure.subplots()
    height = .8 / max(len(arms), 1)
    for index, arm in enumerate(arms):
        middle, low, high = (100 * _numbers(arm[key]) for key in ("estimate", "low", "high"))
        place = np.arange(len(measures))[::-1] + .4 - height * (index + .5)
        colour = COLOURS[index % len(COLOURS)]
        bars = axes.errorbar(middle, place, xerr=np.stack([middle - low, high - middle]), fmt="o", ms=4, capsize=2,
                             color=colour, mfc="white", label=f"{arm['name']} ({arm['users']:,} users)")
        if "adjusted" in arm:
            sure = _numbers(arm["adjusted"]) < 1 - data.ab_test["level"]
            axes.plot(middle[sure], place[sure], "o", ms=4, color=colour, zorder=bars[0].get_zorder() + 1)
    axes.set_yticks(np.arange(len(measures))[::-1], data.ab_test["measures"])
    axes.set_ylim(-.6, len(measures) - .4)
    axes.axvline(0, color="#666", lw=.8)
    axes.set_xlabel(f"difference to {data.ab_test['arms'][0]['name']} per user (%)")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _ab_rows(data: ReportData) -> tuple[Sequence[str], list[list[str]]]:
    if data.ab_test is None:
        return [], []
    base, *others = data.ab_test["arms"]
    rows = []
    for index, measure in enumerate(data.ab_test["measures"]):
        row = [measure, f"{base['mean'][index]:,.4g}"]
        for arm in others:
            middle, low, high = (100 * _number(arm[key][index]) for key in ("estimate", "low", "high"))
            row.append(f"{middle:+.2f}% [{low:+.2f}, {high:+.2f}]")
        row += [f"{100 * _number(arm['detectable'][index]):.2f}%" for arm in others if "detectable" in arm]
        rows.append(row)
    found = [f"{arm['name']} finds" for arm in others if "detectable" in arm]
    return ["measure", f"{base['name']}, mean", *(arm["name"] for arm in others), *found], rows


def _off_policy(data: ReportData) -> Figure | None:
    if data.off_policy is None:
        return None
    found = data.off_policy
    figure = Figure(figsize=(8, 3))
    axes = figure.subplots()
    names, logged = found["behaviours"], _numbers(found["logged"])
    if found.get("refused"):
        _say(axes, f"No estimate: {found['refused']}")
        axes.set(xlabel="difference to the log per request (%)", yticks=[])
        return figure
    with np.errstate(divide="ignore", invalid="ignore"):
        middle, low, high = (100 * (_numbers(found[key]) / logged - 1) for key in ("estimate", "low", "high"))
    place = np.arange(len(names))[::-1]
    axes.errorbar(middle, place, xerr=np.stack([middle - low, high - middle]), fmt="o", capsize=3, color=COLOURS[0])
    axes.set_yticks(place, names)
    axes.set_ylim(-.6, len(names) - .4)
    axes.axvline(0, color="#666", lw=.8)
    size = _number(found["effective_sample_size"][0])
    axes.set(xlabel="difference to the log per request (%)",
             title=f"effective sample size {size:,.0f} of {found['requests']:,} requests")
    return figure


def _off_policy_rows(data: ReportData) -> tuple[Sequence[str], list[list[str]]]:
    if data.off_policy is None or data.off_policy.get("refused"):
        return [], []
    found = data.off_policy
    rows = [[name, *(f"{_number(found[key][index]):.5g}" for key in ("logged", "estimate", "low", "high"))]
            for index, name in enumerate(found["behaviours"])]
    return ["behaviour, per request", "log", "estimate", "low", "high"], rows


def _estimators(data: ReportData) -> Figure | None:
    found = [one for one in (data.off_policy or {}).get("estimators", ()) if not one["refused"]]
    if not found:
        return None
    behaviours = found[0]["behaviours"]
    figure = Figure(figsize=(8, 1.2 + .24 * len(found)))
    panels = np.atleast_1d(figure.subplots(1, len(behaviours), sharey=True))
    place = np.arange(len(found))[::-1]
    for column, (axes, behaviour) in enumerate(zip(panels, behaviours, strict=True)):
        for one, height in zip(found, place, strict=True):
            logged = _number(one["logged"][column])
            if not logged > 0:
                continue
            middle, low, high = (100 * (_number(one[key][column]) / logged - 1) for key in ("estimate", "low", "high"))
            axes.errorbar([middle], [height], xerr=[[middle - low], [high - middle]], fmt="o", ms=3, capsize=2,
                          color=COLOURS[0 if one["per"] == "request" else 1])
        axes.axvline(0, color="#666", lw=.8)
        axes.set_title(behaviour)
        axes.set_yticks(place, [one["estimator"] for one in found])
    horizon = (data.off_policy or {}).get("horizon")
    over = f", whose ratios go over {horizon} requests" if horizon else ""
    figure.supxlabel(f"difference to the log (%), per request (blue) or per session (orange{over})", fontsize=9)
    return figure


def _estimator_rows(data: ReportData) -> tuple[Sequence[str], list[list[str]]]:
    found = (data.off_policy or {}).get("estimators", ())
    if not found:
        return [], []
    behaviours = found[0]["behaviours"]
    rows = []
    for one in found:
        cells = [f"{_number(one['estimate'][k]):.4g} [{_number(one['low'][k]):.4g}, {_number(one['high'][k]):.4g}]"
                 for k in range(len(behaviours))]
        cells = [one["refused"], *[""] * (len(behaviours) - 1)] if one["refused"] else cells
        rows.append([one["estimator"], one["per"], f"{_number(one['effective_sample_size'][0]):,.0f}",
                     f"{_number(one['mean_ratio']):.2f}", *cells])
    return ["estimator", "per", "ESS", "mean ratio", *behaviours], rows


def _weights(data: ReportData) -> Figure | None:
    if data.weights is None:
        return None
    groups, parameters = data.weights["groups"], data.weights["parameters"]
    names = ["the log's mean", *(f"{group['feature']} {group['value']}".strip() for group in groups)]
    values = np.array([data.weights["logged"], *(group["mean"] for group in groups)])
    figure = Figure(figsize=(8, .9 + .24 * len(names)))
    axes = figure.subplots()
    reach = max(float(np.abs(values).max()), 1e-9)
    image = axes.imshow(values, vmin=-reach, vmax=reach, cmap="PuOr", aspect="auto")
    for row, column in np.ndindex(*values.shape):
        axes.text(column, row, f"{values[row, column]:.2f}", ha="center", va="center", fontsize=7,
                  color="white" if abs(values[row, column]) > .7 * reach else "black")
    axes.set_xticks(range(len(parameters)), parameters)
    axes.set_yticks(range(len(names)), names)
    axes.grid(False)
    axes.set(xlabel="fusion parameter (what its prediction is weighed by)", ylabel="users or scene of the request")
    figure.colorbar(image, ax=axes, label="mean weight (vectors of length 1)")
    return figure


def _weights_rows(data: ReportData) -> tuple[Sequence[str], list[list[str]]]:
    if data.weights is None:
        return [], []
    rows = [[f"{group['feature']} {group['value']}".strip(), f"{group['requests']:,}",
             *(f"{_number(value):.3f}" for value in group["mean"])] for group in data.weights["groups"]]
    return ["group", "requests", *data.weights["parameters"]], rows


def _scorer_table(data: ReportData, key: str) -> tuple[list[str], list[str], np.ndarray]:
    scenes = list(dict.fromkeys(row["scene"] for row in data.scorer))
    tasks = list(dict.fromkeys(row["task"] for row in data.scorer))
    values = np.full((len(tasks), len(scenes)), np.nan)
    for row in data.scorer:
        values[tasks.index(row["task"]), scenes.index(row["scene"])] = _number(row.get(key))
    return scenes, tasks, values


def _scorer_auc(data: ReportData) -> Figure | None:
    return _heat(data, "auc", "AUC", .5, 1.0, "viridis") if data.scorer else None


def _scorer_calibration(data: ReportData) -> Figure | None:
    if not data.scorer:
        return None
    return _heat(data, "predicted_over_observed", "predicted over observed", .5, 1.5, "RdBu_r")


def _heat(data: ReportData, key: str, label: str, low: float, high: float, colours: str) -> Figure:
    scenes, tasks, values = _scorer_table(data, key)
    figure = Figure(figsize=(8, .9 + .45 * len(tasks)))
    axes = figure.subplots()
    image = axes.imshow(values, vmin=low, vmax=high, cmap=colours, aspect="auto")
    positives = _scorer_table(data, "positives")[2]
    for row, column in np.argwhere(np.isfinite(values)):
        count = "" if np.isnan(positives[row, column]) else f"\n{positives[row, column]:,.0f} pos."
        axes.text(column, row, f"{values[row, column]:.3f}{count}", ha="center", va="center", fontsize=7.5,
                  bbox={"boxstyle": "round,pad=.15", "facecolor": "white", "alpha": .75, "linewidth": 0})
    axes.set_xticks(range(len(scenes)), scenes)
    axes.set_yticks(range(len(tasks)), tasks)
    axes.grid(False)
    axes.set(xlabel="scene", ylabel="task")
    figure.colorbar(image, ax=axes, label=label)
    return figure


def _scorer_rows(data: ReportData) -> tuple[Sequence[str], list[list[str]]]:
    columns = ["scene", "task", "rows", "positives", "auc", "gauc", "calibration_error", "predicted_over_observed"]
    rows = [[str(row[column]) if column in ("scene", "task") else f"{_number(row.get(column)):,.4g}"
             for column in columns] for row in data.scorer]
    return columns, rows


def _response(data: ReportData) -> Figure | None:
    if data.response is None:
        return None
    areas = {name: _number(area) for name, area in data.response["auc"].items()}
    figure = Figure(figsize=(8, 2.6))
    axes = figure.subplots()
    for place, name in enumerate(areas):
        low, high = map(_number, data.response.get("interval", {}).get(name, (None, None)))
        axes.plot([place, place], [low, high], color=COLOURS[0], lw=1.5)
        axes.plot([place], [areas[name]], "o", color=COLOURS[0])
        if areas[name] == areas[name]:
            axes.annotate(f"{areas[name]:.3f}", (place, areas[name]), (6, 0), textcoords="offset points", va="center")
    axes.set_xticks(range(len(areas)), list(areas))
    axes.axhline(.5, color="#666", lw=.8)
    axes.set(ylabel="AUC on the last day", xlabel="behaviour", ylim=(.3, 1), xlim=(-.5, len(areas)))
    return figure


def _response_rows(data: ReportData) -> tuple[Sequence[str], list[list[str]]]:
    if data.response is None or "positives" not in data.response:
        return [], []
    rows = []
    for name, area in data.response["auc"].items():
        low, high = map(_number, data.response["interval"][name])
        positives = f"{data.response['positives'][name]:,}"
        rows.append([name, positives, f"{_number(area):.3f}", f"{low:.3f}", f"{high:.3f}"])
    return ["behaviour", "positives", "AUC", "low", "high"], rows


def _calibration(data: ReportData) -> Figure | None:
    rows = [(str(scene), str(name), _number(simulated), _number(real)) for scene, name, simulated, real
            in data.calibration if _number(real) > 0 and not _decile(name)]
    if not rows:
        return None
    scenes = list(dict.fromkeys(row[0] for row in rows))
    names = list(dict.fromkeys(row[1] for row in rows))
    figure = Figure(figsize=(8, 3.2))
    axes = figure.subplots()
    for index, scene in enumerate(scenes):
        mine = [(names.index(name), simulated / real) for one, name, simulated, real in rows if one == scene]
        place = np.array([point[0] for point in mine]) + (index - (len(scenes) - 1) / 2) * .12
        axes.plot(place, [point[1] for point in mine], "o", ms=4, color=COLOURS[index % len(COLOURS)],
                  label=f"scene {scene}")
    axes.axhspan(.9, 1.1, color="#009E73", alpha=.15, lw=0)
    axes.axhline(1, color="#666", lw=.8)
    axes.set_xticks(range(len(names)), names, rotation=20)
    axes.set(ylabel="simulated over real (ratio)", xlabel="measure", ylim=(.5, 1.5))
    axes.legend(ncols=5, frameon=False)
    return figure


def _decile(measure: str) -> int:
    """The level of a row of deciles, 0 of any other."""
    name, _, level = str(measure).partition(" p")
    return int(level) if name == "watch_time" and level.isdigit() else 0


def _deciles(data: ReportData) -> Figure | None:
    rows = [(str(scene), _decile(name), _number(simulated), _number(real))
            for scene, name, simulated, real in data.calibration if _decile(name)]
    if not rows:
        return None
    figure = Figure(figsize=(8, 3.2))
    axes = figure.subplots()
    for index, scene in enumerate(dict.fromkeys(row[0] for row in rows)):
        mine = np.array([row[1:] for row in rows if row[0] == scene])
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(mine[:, 0], mine[:, 1], "o", ms=4, color=colour, label=f"scene {scene}, simulated")
        axes.plot(mine[:, 0], mine[:, 2], "-", lw=1, color=colour)
    axes.set_yscale("symlog", linthresh=1)
    axes.set(xlabel="share of the exposures (%)", ylabel="watch time (s, logarithmic beyond 1)",
             title="lines: the log")
    axes.legend(ncols=3, frameon=False)
    return figure


def _calibration_rows(data: ReportData) -> tuple[Sequence[str], list[list[str]]]:
    rows = [[str(scene), str(name), f"{_number(simulated):.5g}", f"{_number(real):.5g}"]
            for scene, name, simulated, real in data.calibration]
    return ["scene", "measure", "simulated", "real"], rows


def _serving(data: ReportData) -> Figure | None:
    if data.serving is None or not data.serving.get("latency_ms"):
        return None
    times = _numbers(data.serving["latency_ms"])
    figure = Figure(figsize=(8, 2.6))
    axes = figure.subplots()
    axes.hist(times, bins=min(40, max(5, len(times) // 5)), color=COLOURS[0])
    for share, style in ((50, "-"), (99, "--")):
        value = float(np.percentile(times, share))
        axes.axvline(value, color=COLOURS[1], ls=style, label=f"p{share} {value:.1f} ms")
    axes.set(xlabel="time of a request (ms)", ylabel="requests", title=str(data.serving.get("endpoint", "")))
    axes.legend(frameon=False)
    return figure


SECTIONS = (
    Section("ab_test", "A/B test in the simulator",
            "Relative difference of means per user to the base bucket with its interval; a full point remains after "
            "the correction for the number of comparisons, a hollow one does not.", "jobs/ab_test.py", _ab_test,
            _ab_rows),
    Section("off_policy", "Off-policy estimate from held-out logs (NCIS)",
            "What the learned policy would have got per request in the log of the logged policy, estimated by "
            "normalised capped importance sampling. That people stay longer or shorter is not in it: states come as "
            "they were logged.", "jobs/evaluate.py", _off_policy, _off_policy_rows),
    Section("estimators", "Off-policy estimates, every estimator",
            "The same question by importance sampling per request (IS, NCIS), per session and per decision (PDIS: of "
            "a session's first requests only), doubly robust with critics (DR), and by critics alone (DM, FQE), whose "
            "intervals count the error of the fit, but not that linear critics may not fit at all, nor that they saw "
            "the samples which the policy learned from; SN is self-normalised. Believe what several of them say.",
            "jobs/evaluate.py", _estimators, _estimator_rows),
    Section("weights", "Where the fusion weights go",
            "Mean direction of the policy's weights per group of requests beside that of the log; a row that differs "
            "from the one of all requests is where the policy personalises.", "jobs/evaluate.py", _weights,
            _weights_rows),
    Section("learning_curves", "Learning curves",
            "The loss of each fit, pass by pass, until its stopping rule ends it. Critics learn where the held-out "
            "line falls. A policy's loss is a weighted log-likelihood whose weights move with it, so it may rise: that "
            "it settles is what counts.",
            "jobs/train_fusion.py", _learning_curves),
    Section("explained_variance", "Explained variance of the critics",
            "How much of each behaviour's target its critic explains; 0 is no better than the mean.",
            "jobs/train_fusion.py", _explained_variance),
    Section("scorer_auc", "Scorer: AUC per scene and task",
            "How well the scorer orders the last day's exposures; .5 is chance. Below it the positives of that day: "
            "with a few dozen a figure says little.", "jobs/train_scenes.py", _scorer_auc,
            _scorer_rows),
    Section("scorer_calibration", "Scorer: calibration per scene and task",
            "Sum of predicted probabilities over observed positives on the last day; 1 is right, and with n positives "
            "chance alone moves it by about 1/√n.",
            "jobs/train_scenes.py", _scorer_calibration),
    Section("serving", "Serving latency", "Times of single requests over HTTP, one after the other.",
            "jobs/demo.py", _serving),
    Section("response", "Simulator: response model",
            "How well the model behind the simulated users orders the last day's exposures of the log, with 95% "
            "intervals over users; .5 is chance.", "jobs/simulate.py", _response, _response_rows),
    Section("calibration", "Simulator: calibration",
            "Rates, watch time and session length under the logged policy over those of the log; the band is ±10%.",
            "jobs/simulate.py", _calibration, _calibration_rows),
    Section("deciles", "Simulator: watch time",
            "Deciles of the watch time of an exposure under the logged policy beside those of the log, per scene.",
            "jobs/simulate.py", _deciles),
    Section("account", "Data account",
            "Where every row of the session logs went: into the samples, or into the quarantine with a reason.",
            "jobs/ingest.py", _account),
)
