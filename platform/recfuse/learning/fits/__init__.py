"""What algorithms compute: their losses and phases, one file an algorithm, beside the config in `algorithms`.

In: the context of a run and batches of samples. Out: losses, weights and searches that the learner runs.
"""
