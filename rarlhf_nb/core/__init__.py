"""The foundation: methods, profiles (the settings of a run), the run folder, checkpoints, seeds, and the error for
bad input.

No module here knows about models, tasks or figures.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "errors": ["UserError"],
        "methods": ["METHODS", "Method", "method_name", "method_order"],
        "profiles": ["PPOSettings", "Profile", "RiskSettings", "SamplingSettings", "load_profile", "profile_files"],
        "runs": ["Run"],
        "seeding": ["hash_seed", "seeded", "shuffled_stream"],
    },
)
