"""What a log says about a policy that did not write it.

In: held-out logs of one policy, another policy, samples to fit critics to. Out: an answer by every estimator of a list,
each with its question, formula, needs and interval.
"""
