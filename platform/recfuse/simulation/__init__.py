"""In: exposures, a scorer's predictions and fusion policies.

Out: a session simulator whose responses are fitted to the exposures, its native session logs, and A/B tests in it.
"""
