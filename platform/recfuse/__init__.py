"""Recfuse: learns, per request, the weights that fuse several predictions into one ranking.

In: session logs. Out: bundles that Ray Serve loads (`fusion`, `scenes`), and the evidence for and against them.
"""

__version__ = "0.1.0"
