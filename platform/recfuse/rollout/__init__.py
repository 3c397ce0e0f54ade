"""The way of a candidate to all users. In: a candidate's bundle, what offline evaluation and the A/B test of what was
served say. Out: the pointer that serving follows, and an audit of every step.
"""
