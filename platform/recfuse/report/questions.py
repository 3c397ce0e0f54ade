"""What a log says of a policy, question by question: tables of answers, the truth beside them, and what warns of them.

Each question is a block of `off_policy.blocks` in the evaluation's `metrics.json`; `truths` are there where the log was
simulated.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from recfuse.report.data import Plain, ReportData, number, numbers
from recfuse.report.section import Part, Table

# The words of an estimate without an interval stand beside its name, and once is enough.
_RANKS, _SHIFT = "ranks policies", "states shift"
_RANKS_BECAUSE = {"request": "critics alone carry it"}
_MARKOV = "assumes that the state is Markov"


def blocks(data: ReportData) -> list[Plain]:
    """The questions; none where nothing was evaluated."""
    return list((data.off_policy or {}).get("blocks", ()))


def truth_of(data: ReportData, block: Plain) -> tuple[np.ndarray, np.ndarray] | None:
    """Changes and half their intervals, float64[m] each, from lives under both policies; None of a real log."""
    truth = ((data.off_policy or {}).get("truths") or {}).get(block["question"])
    return None if truth is None else (numbers(truth["change"]), numbers(truth["error"]))


def answering(block: Plain) -> list[Plain]:
    """Answers with numbers."""
    return [answer for answer in block["answers"] if not answer["refused"]]


def certain(block: Plain) -> list[Plain]:
    """Answers with numbers and intervals."""
    return [answer for answer in answering(block) if not answer["ranks_only"]]


def missed(answer: Plain, truth: tuple[np.ndarray, np.ndarray] | None) -> np.ndarray:
    """bool[m]: the answer's interval and the truth's have nothing in common."""
    low, high = numbers(answer["change_low"]), numbers(answer["change_high"])
    if truth is None:
        return np.zeros(len(low), bool)
    change, error = truth
    return np.asarray((low > change + error) | (high < change - error))


def parts(data: ReportData) -> list[Part]:
    """One a question: its words, its answers beside the log's own mean and the truth, and what warns of them."""
    return [Part(title=block["question"][:1].upper() + block["question"][1:], sentence=block["words"],
                 alarms=list(_alarms(data, block)), notes=_notes(data, block), table=_table(data, block))
            for block in blocks(data)]


def alarms(data: ReportData) -> list[str]:
    """What nobody should miss: estimators that contradict each other or the truth, and states that shift."""
    found = [f"“{block['question']}”: {sentence}" for block in blocks(data) for sentence in _alarms(data, block)]
    compared = sum(int(np.isfinite(truth[0]).sum()) for block in blocks(data) for _ in certain(block)
                   if (truth := truth_of(data, block)) is not None)
    out = [f"{answer['estimator']} on {name}" for block in blocks(data) for answer, name in _misses(data, block)]
    return found + [f"{len(out)} of {compared} intervals leave out the simulated truth: {'; '.join(out)}."] * bool(out)


def findings(data: ReportData) -> list[str]:
    """What the log says on each question, what it does not say, and what would help."""
    sentences, silent = [], []
    for block in blocks(data):
        name = f"“{block['question']}”"
        if block["nobody"]:
            sentences.append(f"On {name}: {block['nobody']}.")
        elif answers := certain(block):
            sentences.append(_finding(data, block, answers[0], name))
        else:
            silent.append(name)
    advice = (data.off_policy or {}).get("advice", ())
    if silent and not advice:
        sentences.insert(0, f"The held-out log does not answer {' or '.join(silent)}.")
    return sentences + [f"{sentence[:1].upper()}{sentence[1:]}." for sentence in advice]


def _finding(data: ReportData, block: Plain, answer: Plain, name: str) -> str:
    truth, behaviour = truth_of(data, block), _behaviours(data)[0]
    known = "" if truth is None else f"; the truth is {100 * truth[0][0]:+.1f}%"
    return f"From the held-out log, {name} brings {_cell(answer, 0)} {behaviour} ({answer['estimator']}){known}."


def details(data: ReportData) -> Table:
    """A row an estimator and question: how it was computed, and on how much."""
    rows = []
    for block in blocks(data):
        for answer in block["answers"]:
            bound, allowed, share = (answer[key] for key in ("bias_bound", "allowance", "feedback_share"))
            rows.append([
                block["question"], answer["estimator"], answer["formula"], str(answer["window"] or ""),
                "" if answer["cap"] is None else f"{answer['cap']:g}",
                f"{number(answer['effective_sample_size'][0]):,.0f}",
                f"{answer['requests']:,}", f"{answer['users']:,}", f"{number(answer['mean_ratio']):.2f}",
                f"{answer['capped_share']:.1%}",
                *("" if most is None else f"{number(most[0]):.3g}" for most in (allowed, bound)),
                "" if share is None else f"{share:.0%}"])
    return ["question", "estimator", "formula", "window", "cap", "ESS", "requests", "users", "mean ratio", "capped",
            *(f"bias of {(_behaviours(data) or ['it'])[0]} {most}" for most in ("allowed for", "at most")),
            "feedback's share"], rows


def _behaviours(data: ReportData) -> list[str]:
    return list((data.off_policy or {}).get("behaviours", ()))


def _table(data: ReportData, block: Plain) -> Table:
    """The log's own mean, the truth, then a row an estimator; refusals for one reason share a row."""
    rows = [[f"the log itself, per {block['unit']}", *(f"{number(value):.4g}" for value in block["logged"])]]
    truth = truth_of(data, block)
    if truth is not None:
        rows.append(["the truth, by simulation", *(
            f"{100 * change:+.1f}% ± {100 * error:.1f}" if np.isfinite(change) else "unknown"
            for change, error in zip(*truth, strict=True))])
    for answer in answering(block):
        misses = missed(answer, truth)
        rows.append([_label(block, answer), *(f"{_cell(answer, index)}{' ≠ truth' if misses[index] else ''}"
                                              for index in range(len(block["logged"])))])
    refused: dict[str, list[str]] = {}
    for answer in block["answers"]:
        if answer["refused"]:
            refused.setdefault(answer["refused"], []).append(answer["estimator"])
    rows += [[", ".join(names), f"no answer: {reason}"] for reason, names in refused.items()]
    if block["nobody"]:
        rows.append(["every estimator", f"no answer: {block['nobody']}"])
    return ["change from the log", *_behaviours(data)], rows


def _label(block: Plain, answer: Plain) -> str:
    if answer["ranks_only"]:
        return f"{answer['estimator']} ({_RANKS}; {_RANKS_BECAUSE.get(block['unit'], _MARKOV)})"
    return answer["estimator"] + (f" (window {answer['window']})" if answer["window"] else "")


def _cell(answer: Plain, index: int) -> str:
    """A change with its interval in percent; the estimate itself where the log's mean is 0."""
    change, low, high = (100 * number(answer[key][index]) for key in ("change", "change_low", "change_high"))
    if np.isnan(change):
        return f"{number(answer['estimate'][index]):.3g}"
    return f"{change:+.1f}%" + ("" if np.isnan(low) else f" [{low:+.1f}, {high:+.1f}]")


def _notes(data: ReportData, block: Plain) -> list[str]:
    notes = list(dict.fromkeys(f"{answer['estimator']}: {sentence}." for answer in block["answers"]
                               for sentence in answer["warnings"] if not sentence.startswith((_RANKS, _SHIFT))))
    if len(block["trend"]) > 1:
        points = ", ".join(f"{point['window']}: {100 * number(point['change'][0]):+.1f}%" for point in block["trend"])
        notes.append(f"{_behaviours(data)[0]} by the number of requests that are weighed together: {points}.")
    return notes


def _alarms(data: ReportData, block: Plain) -> Iterator[str]:
    for each in block["disagreements"]:
        low, high = 100 * number(each["low"]), 100 * number(each["high"])
        yield (f"{each['first']} and {each['second']} disagree on {each['behaviour']} by "
               f"{100 * number(each['difference']):+.1f}% [{low:+.1f}, {high:+.1f}]; at least one of them is wrong.")
    yield from (f"{sentence}." for sentence in dict.fromkeys(
        sentence for answer in block["answers"] for sentence in answer["warnings"] if sentence.startswith(_SHIFT)))


def _misses(data: ReportData, block: Plain) -> list[tuple[Plain, str]]:
    """Answers, and behaviours of which their intervals leave out the truth."""
    return [(answer, name) for answer in certain(block)
            for name, miss in zip(_behaviours(data), missed(answer, truth_of(data, block)), strict=True) if miss]
