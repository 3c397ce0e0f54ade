"""Sweeps. In: a config, the search space declared beside it, and the data of a job. Out: one row per trial, the
frontier of what was found, and a report.

space        what varies, and how it is written into the config     split        users that train, judge, and judge last
judges       what a policy is worth, with intervals                  studies      what a trial of each learner does
ledger       one row per finished trial, in JSONL and Parquet        frontier     who dominates whom; the cheapest λ
search       Ray Tune: searchers, scheduler, trials                  plots        figures of the report
sweep        the job: `python -m tune.sweep --config FILE`
"""
