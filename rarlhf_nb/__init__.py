"""Risk-averse fine-tuning of language models: RA-RLHF (Chaudhary et al., NeurIPS 2024), notebooks first.

Two storeys: this folder is the library, with the paper's equations in `risk` and `ppo` and Algorithm 1 in `trainer`;
`lab` is the application on top of it, which the library never imports. The names below are imported when they are
first used.
"""

import lazy_loader

__version__ = "0.9.0"

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "baselines.grpo": ["CVaRConfig", "CVaRGRPOTrainer", "CVaRRLOOTrainer"],
        "data.pocket": ["pocket_world"],
        "lab.experiment": ["Experiment"],
        "lab.profiles": ["load_profile"],
        "policy": ["load_policy"],
        "risk": ["SoftRiskSchedule", "cvar"],
        "settings": ["PPOSettings", "RiskSettings", "SamplingSettings"],
        "trainer": ["CVaRPPOTrainer"],
    },
)
