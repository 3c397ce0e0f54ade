"""Statistics that every room above uses, in numpy.

In: numbers per user, per request or per exposure. Out: intervals, p-values, ranking metrics, log densities.
"""
