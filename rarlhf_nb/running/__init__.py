"""A whole run, and a whole sweep of runs.

`experiment` is what the notebooks call, `batch` executes the notebooks, and `cli` is the command `rarlhf`.

Only this floor knows every other one.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "batch": ["run_notebooks"],
        "experiment": ["Experiment"],
        "sweep_table": ["sweep_table"],
    },
)
