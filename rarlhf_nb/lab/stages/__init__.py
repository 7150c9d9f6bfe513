"""The stages of a run, in the order in which a run takes them: data, training, evaluation, report.

Each stage names the files of the run folder that it reads and writes, and does its work in `run()`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "critic_free": ["TrainCriticFree", "training_stage"],
        "data": ["PrepareData", "TrainReward"],
        "evaluation": ["Evaluate", "EvaluateAlphas", "evaluation_stage"],
        "report": ["WriteReport"],
        "stage": ["Stage"],
        "training": ["ChoosePrefix", "FineTune", "Train", "TrainExperts"],
    },
)
