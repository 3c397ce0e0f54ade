"""In: exposures of several scenes, and a registry that says which tasks each scene has.

Out: one multi-gate mixture-of-experts model of every (scene, task) pair, its bundle, and calibrated probabilities.
"""
