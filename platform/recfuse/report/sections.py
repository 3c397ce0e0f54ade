"""The sections of a run's page, in their order."""

from __future__ import annotations

from recfuse.report import figures, frontier, questions, tables
from recfuse.report.section import Section

_BRINGS, _WHO = "What it brings", "Who gains"
_BELIEVE, _ENGINEERS = "Can you believe it", "For engineers"
SECTIONS = (
    Section("ab_test", "Learned against hand-tuned against CEM, in the simulator",
            "Relative difference of means per user to the base bucket with its interval; a full point remains after "
            "the correction for the number of comparisons, a hollow one does not.", "recfuse ab-test", figures.ab_test,
            tables.ab_test, chapter=_BRINGS),
    Section("frontier", "What it trades",
            "The long-term behaviour against all others on average; up and to the right is better. The line joins what "
            "no other policy beats in both.", "recfuse ab-test", frontier.frontier, chapter=_BRINGS),
    Section("segments", "Who gains",
            "Change of a request's long-term behaviour in each group of requests, from the held-out log (NCIS). Of "
            "twenty groups about one leaves its interval by chance.", "recfuse evaluate", frontier.segments,
            frontier.segment_rows, chapter=_WHO),
    Section("weights", "Where the fusion weights go",
            "Mean direction of the policy's weights per group of requests beside that of the log; a row that differs "
            "from the one of all requests is where the policy personalises.", "recfuse evaluate", figures.weights,
            tables.weights, chapter=_WHO),
    Section("off_policy", "What the held-out log says of the policy",
            "Four questions, a row of panels each: they are different ones, so their answers may differ. Hollow points "
            "have no interval and only rank policies. A dashed line is the truth, where the log is simulated.",
            "recfuse evaluate", figures.off_policy, questions.details, questions.parts, chapter=_BELIEVE),
    Section("calibration", "Simulator: calibration",
            "Rates, amounts and session length under the logged policy over those of the log; the band is ±10%.",
            "recfuse simulate", figures.calibration, tables.calibration, chapter=_BELIEVE),
    Section("response", "Simulator: response model",
            "How well the model behind the simulated users orders the last day's exposures of the log, with 95% "
            "intervals over users; .5 is chance.", "recfuse simulate", figures.response, tables.response,
            chapter=_BELIEVE),
    Section("deciles", "Simulator: amounts",
            "Deciles of the amount of an exposure, as watch time, under the logged policy beside those of the log.",
            "recfuse simulate", figures.deciles, chapter=_BELIEVE),
    Section("learning_curves", "Learning curves",
            "The loss of each fit, pass by pass, until its stopping rule ends it. Critics learn where the held-out "
            "line falls. A policy's loss is a weighted log-likelihood whose weights move with it, so it may rise: that "
            "it settles is what counts.",
            "recfuse train", figures.learning_curves, chapter=_ENGINEERS),
    Section("explained_variance", "Explained variance of the critics",
            "How much of each behaviour's target its critic explains; 0 is no better than the mean.",
            "recfuse train", figures.explained_variance, chapter=_ENGINEERS),
    Section("scorer_auc", "Scorer: AUC per scene and task",
            "How well the scorer orders the last day's exposures; .5 is chance. Below it the positives of that day: "
            "with a few dozen a figure says little.", "recfuse train-scenes", figures.scorer_auc,
            tables.scorer, chapter=_ENGINEERS),
    Section("scorer_calibration", "Scorer: calibration per scene and task",
            "Sum of predicted probabilities over observed positives on the last day; 1 is right, and with n positives "
            "chance alone moves it by about 1/√n.",
            "recfuse train-scenes", figures.scorer_calibration, chapter=_ENGINEERS),
    Section("serving", "Serving latency", "Times of single requests over HTTP, one after the other.",
            "recfuse demo", figures.serving, chapter=_ENGINEERS),
    Section("account", "Data account",
            "Where every row of the session logs went: into the samples, or into the quarantine with a reason.",
            "recfuse ingest", figures.account, chapter=_ENGINEERS),
)
