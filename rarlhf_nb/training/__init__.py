"""The paper's method: `risk` and `ppo` hold its equations, `trainer` is Algorithm 1.

`policy` is the actor-critic that they train, and `sft` makes the policy that they start from. `critic_free` brings the
tail to TRL's GRPO and RLOO, with which `critic_free_methods` trains in a run; `costs` and `plan` calculate what an
iteration takes.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "conditioned": ["AlphaConditionedTrainer"],
        "critic_free": ["CVaRConfig", "CVaRGRPOTrainer", "CVaRRLOOTrainer"],
        "episodes": ["Episodes"],
        "policy": ["ActorCritic", "Policy", "Reference", "load_policy"],
        "risk": ["SoftRiskSchedule", "cvar", "kept_episodes", "rockafellar_uryasev_rewards", "tail_count", "var"],
        "sft": ["train_sft"],
        "trainer": ["CVaRPPOTrainer"],
    },
)
