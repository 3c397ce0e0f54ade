"""The learning algorithms, one a file.

In: a config and samples. Out: phases that the learner runs.
"""
