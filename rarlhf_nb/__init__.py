"""Risk-averse fine-tuning of language models: RA-RLHF (Chaudhary et al., NeurIPS 2024), notebooks first.

The floors, from the bottom: `core`, `worlds`, `training`, `baselines`, `measuring`, `showing`, `running`. A module
imports only from its own floor and from those below it; `training.risk` and `training.ppo`, the equations, lie below
`core`. The names below are imported when they are first used.
"""

import lazy_loader

__version__ = "0.8.1"

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "core.profiles": ["PPOSettings", "RiskSettings", "SamplingSettings", "load_profile"],
        "running.experiment": ["Experiment"],
        "training.critic_free": ["CVaRConfig", "CVaRGRPOTrainer", "CVaRRLOOTrainer"],
        "training.policy": ["load_policy"],
        "training.risk": ["SoftRiskSchedule", "cvar"],
        "training.trainer": ["CVaRPPOTrainer"],
        "worlds.pocket": ["pocket_world"],
    },
)
