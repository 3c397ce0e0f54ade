"""The learning algorithms, one a file: config with formula and reference, losses, phases.

In: the settings of a run. Out: phases that the learner runs, and the networks that they train. Every module here
registers its algorithms, so that a new one is a new file.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
