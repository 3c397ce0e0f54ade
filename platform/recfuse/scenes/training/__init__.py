"""Fits the scorer, in this process or on Ray.

No Ray: `config` and `problem` say what is to be fitted, `tensors` feeds the network, `step` takes one optimiser step,
`stop` keeps the best epoch, `checkpoint` lets a cut-off training go on, `shift` corrects the last bias, `local` trains
in this process, and `blocks` deals rows to workers. Ray: `workers` trains with Ray Train, and `fit` chooses.
"""
