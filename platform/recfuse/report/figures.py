"""The figures of a run, by matplotlib: data in, a figure out, None where nothing was measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from recfuse.report.data import Plain, ReportData, number, numbers
from recfuse.report.questions import answering, blocks, truth_of
from recfuse.report.style import COLOURS, GREY

PHASES = {"critics": "Critics", "cloning": "Imitation of the logged policy",
          "stage_one": "Stage one: short-term policies", "stage_two": "Stage two: the long-term policy"}
# Of stage one the held-out loss is of another kind: what judges its stopping.
_COMPARABLE = ("critics", "cloning", "stage_two")
# Of the panels of a question, in inches: a line, what is around the lines, above them, and below the last panel.
_LINE, _AROUND, _HEAD, _FOOT = .24, .8, .45, .25
# What stands for the answers where there is the truth alone.
_NOBODY: Plain = {"estimator": "no answer", "ranks_only": True, "change": (), "change_low": (), "change_high": ()}


def account(data: ReportData) -> Figure | None:
    """Where every row of the session logs went."""
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


def learning_curves(data: ReportData) -> Figure | None:
    """The loss of each fit, pass by pass."""
    phases = [phase for phase in PHASES if any(entry["phase"] == phase for entry in data.history)]
    if not phases:
        return None
    figure = Figure(figsize=(8, 2.4 * ((len(phases) + 1) // 2)))
    for panel, phase in enumerate(phases):
        axes = figure.add_subplot((len(phases) + 1) // 2, 2, panel + 1)
        entries = [entry for entry in data.history if entry["phase"] == phase]
        passes = [entry["iteration"] + 1 for entry in entries]
        axes.plot(passes, numbers([entry["loss"] for entry in entries]), "o-", color=COLOURS[0], ms=3,
                  label="samples that train")
        if phase in _COMPARABLE and any("holdout_loss" in entry for entry in entries):
            axes.plot(passes, numbers([entry.get("holdout_loss") for entry in entries]), "s--", color=COLOURS[1], ms=3,
                      label="samples held out")
            axes.legend(frameon=False)
        axes.set(title=PHASES[phase], xlabel="passes over the samples", ylabel="loss (no unit)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def explained_variance(data: ReportData) -> Figure | None:
    """The share of each critic's target that it explains, pass by pass."""
    prefix = "explained_variance/"
    entries = [entry for entry in data.history if entry["phase"] == "critics"]
    names = sorted({key.removeprefix(prefix) for entry in entries for key in entry if key.startswith(prefix)})
    if not names:
        return None
    figure = Figure(figsize=(8, 3))
    axes = figure.subplots()
    for index, name in enumerate(names):
        values = numbers([entry.get(prefix + name) for entry in entries])
        axes.plot([entry["iteration"] + 1 for entry in entries], values, "o-", ms=3,
                  color=COLOURS[index % len(COLOURS)], label=name)
    axes.axhline(0, color=GREY, lw=.8)
    axes.set(xlabel="passes over the samples", ylabel="explained variance (share)")
    axes.legend(ncols=3, frameon=False)
    return figure


def ab_test(data: ReportData) -> Figure | None:
    """Every arm against the base, measure by measure."""
    if data.ab_test is None:
        return None
    base, *arms = data.ab_test["arms"]
    measures = data.ab_test["measures"]
    figure = Figure(figsize=(8, 1.2 + .13 * len(measures) * (len(arms) + 1)))
    axes = figure.subplots()
    height = .8 / max(len(arms), 1)
    for index, arm in enumerate(arms):
        middle, low, high = (100 * numbers(arm[key]) for key in ("estimate", "low", "high"))
        place = np.arange(len(measures))[::-1] + .4 - height * (index + .5)
        colour = COLOURS[index % len(COLOURS)]
        bars = axes.errorbar(middle, place, xerr=_whiskers(middle, low, high), fmt="o", ms=4, capsize=2,
                             color=colour, mfc="white", label=f"{arm['name']} ({arm['users']:,} users)")
        if "adjusted" in arm:
            sure = numbers(arm["adjusted"]) < 1 - data.ab_test["level"]
            axes.plot(middle[sure], place[sure], "o", ms=4, color=colour, zorder=bars[0].get_zorder() + 1)
    axes.set_yticks(np.arange(len(measures))[::-1], measures)
    axes.set_ylim(-.6, len(measures) - .4)
    axes.axvline(0, color=GREY, lw=.8)
    axes.set_xlabel(f"difference to {base['name']} per user (%)")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def off_policy(data: ReportData) -> Figure | None:
    """Changes from the log: a row of panels a question, a panel a behaviour, a line an estimator."""
    asked = blocks(data)
    if not asked:
        return None
    # In inches and not by a layout engine, whose sums differ in the last digit from one run to the next.
    heights = [_AROUND + _LINE * max(len(answering(block)), 1) for block in asked]
    figure = Figure(figsize=(8, _FOOT + sum(heights)))
    figure.set_layout_engine("none")
    top = sum(heights) + _FOOT
    for block, height in zip(asked, heights, strict=True):
        figure.text(.01, (top - .05) / (sum(heights) + _FOOT), block["question"], va="top", fontweight="bold")
        if answering(block) or truth_of(data, block) is not None:
            _question(figure, data, block, top - _HEAD, height - _AROUND)
        else:
            figure.text(.5, (top - height / 2) / (sum(heights) + _FOOT), "nobody answers: " + (
                "only an A/B test or a canary does" if block["nobody"] else "the log has too little support"),
                ha="center", color=GREY)
        top -= height
    figure.supxlabel("change from the log (%)", fontsize=9, y=.01)
    return figure


def _question(figure: Figure, data: ReportData, block: Plain, top: float, height: float) -> None:
    """The panels of a question in inches below `top`, the truth a dashed line where it is known."""
    answers, truth = answering(block), truth_of(data, block)
    behaviours, whole = data.off_policy["behaviours"] if data.off_policy else [], figure.get_figheight()
    longest = max(len(answer["estimator"]) for each in blocks(data) for answer in [*answering(each), _NOBODY])
    left = .02 + .009 * min(longest, 40)
    width, side = (.99 - left) / len(behaviours), None
    for column, behaviour in enumerate(behaviours):
        place = (left + column * width, (top - height) / whole, width - .02, height / whole)
        axes = figure.add_axes(place, sharey=side)
        _answers_panel(axes, answers or [_NOBODY], column)
        if truth is not None:
            axes.plot([100 * truth[0][column]] * 2, axes.get_ylim(), color="black", lw=1.2, ls="--")
        axes.set_title(behaviour, fontsize=9)
        axes.locator_params(axis="x", nbins=4)
        axes.tick_params(labelleft=side is None, labelsize=8)
        side = side or axes


def _answers_panel(axes: Axes, answers: Sequence[Plain], column: int) -> None:
    """Answers to one question on one behaviour; those without intervals are hollow."""
    place = np.arange(len(answers))[::-1]
    for answer, height in zip(answers, place, strict=True):
        middle, low, high = (100 * numbers(answer[key])[column:column + 1]
                             for key in ("change", "change_low", "change_high"))
        if not np.isfinite(middle).any():  # relative to 0 there is no difference
            continue
        if answer["ranks_only"]:
            axes.plot(middle, [height], "D", ms=4, mfc="white", color=COLOURS[1])
        else:
            axes.errorbar(middle, [height], xerr=_whiskers(middle, low, high), fmt="o", ms=4, capsize=2,
                          color=COLOURS[0])
    axes.set_yticks(place, [answer["estimator"] for answer in answers])
    axes.set_ylim(-.6, len(answers) - .4)
    axes.plot([0, 0], axes.get_ylim(), color=GREY, lw=.8)


def _whiskers(middle: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """[2, n] distances to the ends of intervals; an end on the wrong side of the middle, as those of a skewed bootstrap
    may lie, is drawn at the middle."""
    distances: np.ndarray = np.stack([middle - low, high - middle])
    return np.where(distances < 0, 0.0, distances)


def weights(data: ReportData) -> Figure | None:
    """Mean weights per group of requests, as a table of colours."""
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


def _scorer_table(data: ReportData, key: str) -> tuple[list[str], list[str], np.ndarray]:
    scenes = list(dict.fromkeys(row["scene"] for row in data.scorer))
    tasks = list(dict.fromkeys(row["task"] for row in data.scorer))
    values = np.full((len(tasks), len(scenes)), np.nan)
    for row in data.scorer:
        values[tasks.index(row["task"]), scenes.index(row["scene"])] = number(row.get(key))
    return scenes, tasks, values


def scorer_auc(data: ReportData) -> Figure | None:
    """AUC per scene and task."""
    return _heat(data, "auc", "AUC", .5, 1.0, "viridis") if data.scorer else None


def scorer_calibration(data: ReportData) -> Figure | None:
    """Predicted over observed positives per scene and task."""
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


def response(data: ReportData) -> Figure | None:
    """AUC of the simulator's response model, with intervals."""
    if data.response is None:
        return None
    areas = {name: number(area) for name, area in data.response["auc"].items()}
    figure = Figure(figsize=(8, 2.6))
    axes = figure.subplots()
    for place, name in enumerate(areas):
        low, high = map(number, data.response.get("interval", {}).get(name, (None, None)))
        axes.plot([place, place], [low, high], color=COLOURS[0], lw=1.5)
        axes.plot([place], [areas[name]], "o", color=COLOURS[0])
        if areas[name] == areas[name]:
            axes.annotate(f"{areas[name]:.3f}", (place, areas[name]), (6, 0), textcoords="offset points", va="center")
    axes.set_xticks(range(len(areas)), list(areas))
    axes.axhline(.5, color=GREY, lw=.8)
    axes.set(ylabel="AUC on the last day", xlabel="behaviour", ylim=(.3, 1), xlim=(-.5, len(areas)))
    return figure


def calibration(data: ReportData) -> Figure | None:
    """Simulated over real measures per scene."""
    rows = [(str(scene), str(name), number(simulated), number(real)) for scene, name, simulated, real
            in data.calibration if number(real) > 0 and not _decile(name)]
    if not rows:
        return None
    scenes = list(dict.fromkeys(row[0] for row in rows))
    names = list(dict.fromkeys(row[1] for row in rows))
    figure = Figure(figsize=(8, 3.2))
    axes = figure.subplots()
    for index, scene in enumerate(scenes):
        points = [(names.index(row[1]), row[2] / row[3]) for row in rows if row[0] == scene]
        place = np.array([point[0] for point in points]) + (index - (len(scenes) - 1) / 2) * .12
        axes.plot(place, [point[1] for point in points], "o", ms=4, color=COLOURS[index % len(COLOURS)],
                  label=f"scene {scene}")
    axes.axhspan(.9, 1.1, color=COLOURS[2], alpha=.15, lw=0)
    axes.axhline(1, color=GREY, lw=.8)
    axes.set_xticks(range(len(names)), names, rotation=20)
    axes.set(ylabel="simulated over real (ratio)", xlabel="measure", ylim=(.5, 1.5))
    axes.legend(ncols=5, frameon=False)
    return figure


def _decile(measure: str) -> int:
    """The level of a row of deciles, 0 of any other."""
    name, _, level = str(measure).partition(" p")
    return int(level) if name and level.isdigit() else 0


def deciles(data: ReportData) -> Figure | None:
    """Deciles of the amount (watch time), simulated and real, per scene."""
    rows = [(str(scene), _decile(name), number(simulated), number(real))
            for scene, name, simulated, real in data.calibration if _decile(name)]
    if not rows:
        return None
    amount = next(str(name).partition(" p")[0] for _, name, *_ in data.calibration if _decile(name))
    figure = Figure(figsize=(8, 3.2))
    axes = figure.subplots()
    for index, scene in enumerate(dict.fromkeys(row[0] for row in rows)):
        of_scene = np.array([row[1:] for row in rows if row[0] == scene])
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(of_scene[:, 0], of_scene[:, 1], "o", ms=4, color=colour, label=f"scene {scene}, simulated")
        axes.plot(of_scene[:, 0], of_scene[:, 2], "-", lw=1, color=colour)
    axes.set_yscale("symlog", linthresh=1)
    axes.set(xlabel="share of the exposures (%)", ylabel=f"{amount.replace('_', ' ')} (logarithmic beyond 1)",
             title="lines: the log")
    axes.legend(ncols=3, frameon=False)
    return figure


def serving(data: ReportData) -> Figure | None:
    """A histogram of latencies."""
    if data.serving is None or not data.serving.get("latency_ms"):
        return None
    times = numbers(data.serving["latency_ms"])
    figure = Figure(figsize=(8, 2.6))
    axes = figure.subplots()
    axes.hist(times, bins=min(40, max(5, len(times) // 5)), color=COLOURS[0])
    for share, style in ((50, "-"), (99, "--")):
        value = float(np.percentile(times, share))
        axes.axvline(value, color=COLOURS[1], ls=style, label=f"p{share} {value:.1f} ms")
    axes.set(xlabel="time of a request (ms)", ylabel="requests", title=str(data.serving.get("endpoint", "")))
    axes.legend(frameon=False)
    return figure
