"""The world of a policy: the prompts of each task, the rewards, and the sources of models and data sets.

The sources are the embedded pocket world, the paper's data sets, the hub, SmolLM2 and the user's files.
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
