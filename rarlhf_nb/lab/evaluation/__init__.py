"""From a policy to numbers: evaluation of every method on the same prompts, and metrics with intervals.

Nothing here depends on how a method was trained.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "cells": ["interval_cell", "markdown_table"],
        "equal_kl": ["gain_at_equal_kl"],
        "evaluate": ["evaluate", "held_out_log_likelihoods"],
        "generations": ["read_generations"],
        "ledger": ["build_ledger", "ledger_table"],
        "metrics": ["Interval", "bootstrap_interval", "seed_interval", "seeds_needed", "tail_mean"],
        "report": ["Report", "build_report", "summary_table"],
        "sweep_report": ["SweepReport", "build_sweep_report"],
        "sweeps": ["related_scores", "seed_table"],
        "tables": ["Tables", "load_tables"],
    },
)
