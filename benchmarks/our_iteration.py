"""Our iteration, `CVaRPPOTrainer.step`, as a worker of `benchmarks.iteration`."""

import json
import sys
from functools import cache, partial
from pathlib import Path
from unittest.mock import patch

from benchmarks.worker import Meter, Spent, serve
from rarlhf_nb.policy import Reference, load_policy
from rarlhf_nb.settings import PPOSettings, RiskSettings, SamplingSettings
from rarlhf_nb.trainer import CVaRPPOTrainer


def lengths(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
    """A reward that costs nothing."""
    return [float(len(completion) % 7) for completion in completions]


class Engine:
    """A policy and its reference, with a trainer for every estimator and alpha that is asked for."""

    def __init__(self, folder: Path) -> None:
        shape = json.loads((folder / "shape.json").read_text())
        self.prompts = json.loads((folder / "prompts.json").read_text())
        self.policy = load_policy(folder)
        self.reference = Reference(self.policy)
        self.ppo = PPOSettings(
            iterations=1000, batch_size=shape["batch"], epochs=shape["epochs"], learning_rate=1e-5, kl_coef=0.1
        )
        self.sampling = SamplingSettings(
            completion_length=shape["completion"], minimum_completion_length=shape["completion"]
        )
        self.optimizer = None

    @cache  # noqa: B019 - the engine lives as long as its process
    def trainer(self, estimator: str, alpha: float, above_share: float) -> CVaRPPOTrainer:
        """A trainer that keeps its tail from the first iteration on."""
        risk = RiskSettings(
            estimator=estimator, alpha=alpha, above_share=above_share, warm_start=0, rho=1 / self.ppo.iterations
        )
        trainer = CVaRPPOTrainer(self.policy, lengths, self.ppo, risk, self.sampling, reference=self.reference)
        # one optimizer, so that a GPT-2 has Adam's moments in memory once
        self.optimizer = trainer.optimizer = self.optimizer or trainer.optimizer
        return trainer

    def iterate(self, estimator: str, alpha: float, above_share: float, count_flops: bool = False) -> Spent:
        """What one iteration spends, in its phases `generate` and `update` and as a `whole`."""
        trainer, meter = self.trainer(estimator, alpha, above_share), Meter(count_flops)
        with (
            patch.object(self.policy, "sample", partial(meter, "generate", self.policy.sample)),
            patch.object(trainer, "update", partial(meter, "update", trainer.update)),
            meter.counting,
        ):
            meter("whole", trainer.step, self.prompts)
        return meter.spent


if __name__ == "__main__":
    serve(Engine(Path(sys.argv[1])).iterate)
