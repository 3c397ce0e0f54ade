"""What people read of a run.

In: what the jobs measured, as plain values. Out: one self-contained HTML page.
"""
