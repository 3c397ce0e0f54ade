"""In: decisions, feedback and predictions. Out: off-policy estimates, ranking metrics, intervals and a report."""
