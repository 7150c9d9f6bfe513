"""What all stages of a run share: its settings, its folder, and the data and models that lie there."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from rarlhf_nb.baselines.best_of_n import BestOfN
from rarlhf_nb.baselines.dexperts import DExperts
from rarlhf_nb.core.methods import BASELINES_NOTEBOOK, DATA_NOTEBOOK, SFT_NOTEBOOK, find_method
from rarlhf_nb.core.profiles import Profile
from rarlhf_nb.core.runs import Run
from rarlhf_nb.training.policy import ActorCritic, Policy, Reference, load_policy
from rarlhf_nb.worlds.pocket import pocket_world
from rarlhf_nb.worlds.rewards import ClassifierReward, load_reward
from rarlhf_nb.worlds.smollm2 import smollm2_folder

EXPERTS = ("expert", "anti_expert")


@dataclass(frozen=True)
class Workspace:
    """A profile, a run folder and a seed.

    Whatever is missing in the folder is named in a `UserError`, with the notebook to run first.
    """

    profile: Profile
    run: Run
    seed: int

    def data(self, name: str) -> pd.DataFrame:
        """The table data/<name>.parquet: train, test, sft, anti_expert or held_out."""
        return pd.read_parquet(self.run.require(f"data/{name}.parquet", made_by=DATA_NOTEBOOK))

    def reward(self) -> ClassifierReward:
        """The profile's reward model."""
        settings = self.profile.reward
        names = settings.accepted_label_names or None
        return load_reward(self.reward_folder(), settings.label, names, settings.sign, settings.batch_size)

    def reward_folder(self) -> Path:
        """Where the reward model lies; for a hub id, the id."""
        model = self.profile.reward.model
        if model == "pocket":
            return pocket_world(self.profile.task.source).reward
        if model == "train":
            return self.run.require("reward/config.json", made_by=DATA_NOTEBOOK).parent
        return Path(model)

    def base(self, with_adapter: bool = False) -> ActorCritic:
        """The profile's model before any training; with_adapter: with a fresh adapter on it if the profile has one."""
        lora = self.profile.policy.lora if with_adapter else None
        return load_policy(self._base_folder(), lora, self._dtype, self.seed)

    def start(self) -> ActorCritic:
        """The SFT policy, from which every RL method starts, with a fresh adapter on it if the profile has one."""
        return load_policy(self._policy_folder("sft", SFT_NOTEBOOK), self.profile.policy.lora, self._dtype, self.seed)

    def reference(self) -> Reference:
        """pi_ref of every method: the SFT policy, frozen."""
        return Reference(self.saved("sft"))

    def saved(self, method: str) -> ActorCritic:
        """The policy in policies/<method>/."""
        return load_policy(self._policy_folder(method, find_method(method).notebook), dtype=self._dtype)

    def policy(self, method: str, base: ActorCritic | None = None) -> Policy:
        """The policy of a method for evaluation; `base` is the profile's model.

        base: that model, where the caller has loaded it already.
        """
        if method == "base":
            return base or self.base()
        if method == "dexperts":
            settings = self.profile.dexperts
            experts = (
                load_policy(self._policy_folder(f"dexperts/{name}", BASELINES_NOTEBOOK), dtype=self._dtype)
                for name in EXPERTS
            )
            return DExperts(base or self.base(), *experts, settings.alpha, settings.top_p)
        if method == "best_of_n":
            return BestOfN(self.saved("sft"), self.reward(), self.profile.best_of_n.samples)
        return self.saved(method)

    @property
    def _dtype(self) -> torch.dtype:
        return getattr(torch, self.profile.policy.dtype)

    def _base_folder(self) -> Path | str:
        model = self.profile.policy.model
        if model == "pocket":
            return pocket_world(self.profile.task.source).policy
        return smollm2_folder() if model == "smollm2" else model

    def _policy_folder(self, name: str, made_by: str) -> Path:
        return self.run.require(f"policies/{name}/config.json", made_by=made_by).parent
