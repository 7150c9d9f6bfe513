"""What a policy lives in: the prompts of each task, the rewards, and where models and data sets come from.

The embedded pocket world is here, and so are the paper's data sets, the hub and SmolLM2.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "classifier": ["train_classifier"],
        "hub": ["resolve_model"],
        "pocket": ["PocketWorld", "pocket_world"],
        "rewards": ["ClassifierReward", "check_rewards", "load_reward"],
        "smollm2": ["smollm2_folder"],
        "tasks": ["Task", "load_task"],
    },
)
