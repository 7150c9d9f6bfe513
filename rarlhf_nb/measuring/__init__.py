"""From a policy to numbers: every method is evaluated on the same prompts, and tables become metrics with intervals.

Nothing here knows how a method was trained.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "evaluation": ["evaluate", "held_out_log_likelihoods"],
        "generations": ["read_generations"],
        "ledger": ["build_ledger", "ledger_table"],
        "metrics": ["Interval", "bootstrap_interval", "seed_interval", "tail_mean"],
        "report": ["Report", "Tables", "build_report", "load_tables", "summary_table"],
        "sweeps": ["related_scores", "seed_table"],
    },
)
