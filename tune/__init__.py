"""Sweeps. In: a config, the search space declared beside it, and the data of a job. Out: one row per trial, the
frontier of what was found, and a report.

settings      what a sweep is told                                    space        what varies, written into a config
split         users that train, judge, and judge last                 samples      the demo's, where none are given
judges        what a policy is worth, with intervals                  studies      what a search asks of a trial
fusion        trials of the fusion learner                            scenes       trials of the scorer
search        Ray Tune: searchers, scheduler, trials                  ledger       one row per finished trial
frontier      who dominates whom; the cheapest multiplier λ           plots        figures of the report
conclusion    winner, summary, report, closing tables                 sweep        the job, `python -m tune.sweep`
"""
