"""Notebook 04: GRPO and RLOO of TRL, alone and on the tail, from the same SFT policy as every other method."""

from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from rarlhf_nb.baselines.critic_free import train_critic_free
from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.methods import CRITIC_FREE, RISK_AVERSE, MethodKey
from rarlhf_nb.lab.stages.training import Train
from rarlhf_nb.lab.workspace import Workspace
from rarlhf_nb.loop import TrainingLoop
from rarlhf_nb.settings import RiskSettings


@dataclass(frozen=True)
class TrainCriticFree(Train):
    """`grpo`, `cvar_grpo`, `rloo` and `cvar_rloo`, the risk-averse ones also with "@alpha"; on one process."""

    modules = ("baselines.critic_free",)
    processes = 1

    @property
    def settings(self) -> dict[str, Any]:
        profile = self.workspace.profile
        plain = self.risk.alpha == 1  # then estimator, tail and schedule make no difference
        own = profile.critic_free.model_dump(
            mode="json", exclude={"methods", *(("estimator", "tail") if plain else ())}
        )
        risk = None if plain else self.risk.model_dump(mode="json")
        return self._with_common(ppo=profile.ppo) | {"critic_free": own, "risk": risk, "algorithm": self.algorithm}

    @property
    def algorithm(self) -> str:
        """TRL's: "grpo" or "rloo"."""
        return MethodKey.parse(self.method).name.removeprefix("cvar_")

    @property
    def risk(self) -> RiskSettings:
        """The tail share of the method, and the schedule."""
        name, alpha = MethodKey.parse(self.method)
        risk = self.workspace.profile.risk
        own = risk.alpha if name in RISK_AVERSE else 1.0
        return risk.model_copy(update={"alpha": own if alpha is None else alpha})

    def work(self, iterations: int | None = None) -> None:
        """Train and save the policy; a training that was interrupted goes on where it stopped.

        iterations: train only so many, and save no policy.
        """
        workspace, profile = self.workspace, self.workspace.profile
        policy = workspace.start()
        train_critic_free(
            policy,
            workspace.reward(),
            Dataset.from_pandas(workspace.data("train"), preserve_index=False),
            profile.critic_free,
            profile.ppo,
            self.risk,
            profile.sampling,
            self.algorithm,
            workspace.seed,
            profile.policy.mixed_precision,
            workspace.run.path("training", f"{self.method}.jsonl"),
            self.checkpoints(self.method),
            iterations,
        )
        if iterations is None:
            workspace.run.write_folder(f"policies/{self.method}", policy.save)

    def trainer(self, **changes: Any) -> TrainingLoop:
        """Raises `UserError`: TRL's trainers do not run one iteration at a time."""
        raise UserError(f"method = {self.method!r}: TRL trains it as a whole; call experiment.train({self.method!r}).")


def training_stage(workspace: Workspace, method: str) -> Train:
    """The stage that trains a method."""
    kind = TrainCriticFree if MethodKey.parse(method).name in CRITIC_FREE else Train
    return kind(workspace, method)
