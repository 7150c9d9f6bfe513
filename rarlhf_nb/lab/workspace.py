"""What all stages of a run share: its settings, its folder, and the data and models that lie there."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import datasets
import pandas as pd
import torch
import transformers

from rarlhf_nb.baselines.best_of_n import BestOfN
from rarlhf_nb.baselines.dexperts import DExperts
from rarlhf_nb.data.pocket import pocket_world
from rarlhf_nb.data.smollm2 import smollm2_folder
from rarlhf_nb.errors import UserError
from rarlhf_nb.files import checksum, files_of
from rarlhf_nb.lab.artifacts import content_id
from rarlhf_nb.lab.methods import BASELINES_NOTEBOOK, CONDITIONED, DATA_NOTEBOOK, METHODS, SFT_NOTEBOOK, MethodKey
from rarlhf_nb.lab.profiles import Profile
from rarlhf_nb.lab.runs import Run
from rarlhf_nb.policy import ActorCritic, Policy, Reference, load_policy
from rarlhf_nb.rewards import ClassifierReward, load_reward

EXPERTS = ("expert", "anti_expert")
MADE_BY = {name: method.notebook for name, method in METHODS.items()}  # policy -> notebook
MADE_BY |= {f"dexperts/{name}": BASELINES_NOTEBOOK for name in EXPERTS}
PLACES = {"data": DATA_NOTEBOOK, "reward": DATA_NOTEBOOK, "evaluation": SFT_NOTEBOOK}  # folder -> notebook


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
        self.run.require(f"data/{name}.parquet", made_by=DATA_NOTEBOOK)
        return self.run.read(f"data/{name}.parquet")

    def recorded(self, place: str) -> dict[str, str]:
        """The checksums of what an earlier stage left at `place`, a file or folder, by path below it.

        Raises `UserError` with the notebook to run if there is nothing.
        """
        if not self.run.path(place).exists():
            folder, _, name = place.partition("/")
            if folder == "policies":
                self.policy_folder(name)
            else:
                self.run.require(place, PLACES[folder])
        return {str(file.relative_to(self.run.path(place))): checksum(file) for file in files_of(self.run.path(place))}

    def settings(self, *sections: str) -> dict[str, Any]:
        """What determines the files of a stage: sections of the profile, the models and the seed, as JSON."""
        found = self.profile.model_dump(mode="json", include=set(sections))
        return found | {"models": self.models(), "seed": self.seed}

    def models(self) -> dict[str, Any]:
        """What tells the profile's policy and reward model apart from others, as JSON."""
        chosen = {"policy": self.profile.policy.model, "reward": self.profile.reward.model}
        return {
            name: pocket_world(self.profile.task.source).fingerprint if model == "pocket" else content_id(model)
            for name, model in chosen.items()
        }

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
            return self.run.require("reward", made_by=DATA_NOTEBOOK)
        return Path(model)

    def base(self, with_adapter: bool = False) -> ActorCritic:
        """The profile's model before any training; with_adapter: with a fresh adapter on it if the profile has one."""
        return self._load(self._base_folder(), with_adapter)

    def start(self) -> ActorCritic:
        """The SFT policy, from which every RL method starts, with a fresh adapter on it if the profile has one."""
        return self._load(self.policy_folder("sft"), with_adapter=True)

    def reference(self) -> Reference:
        """pi_ref of every method: the SFT policy, frozen."""
        return Reference(self.saved("sft"))

    def saved(self, method: str) -> ActorCritic:
        """The policy in policies/<method>/."""
        return load_policy(self.policy_folder(method), dtype=self._dtype)

    def policy(self, method: str, base: ActorCritic | None = None) -> Policy:
        """The policy of a method for evaluation.

        base: the profile's model, if the caller has loaded it already.
        """
        if method == "base":
            return base or self.base()
        if method == "dexperts":
            settings = self.profile.dexperts
            experts = (self.saved(f"dexperts/{name}") for name in EXPERTS)
            return DExperts(base or self.base(), *experts, settings.alpha, settings.top_p)
        if method == "best_of_n":
            return BestOfN(self.saved("sft"), self.reward(), self.profile.best_of_n.samples)
        name, alpha = MethodKey.parse(method)
        return self.saved(CONDITIONED).at(alpha) if name == CONDITIONED else self.saved(method)

    def policy_folder(self, name: str) -> Path:
        """The folder policies/<name>/, whole: a method's, `dexperts/expert`, or one that the user has put there.

        Raises `UserError` with the notebook to run, or with the policies of the run if no notebook makes this one.
        """
        there = sorted(folder.name for folder in self.run.path("policies").glob("[!.]*"))
        if name not in there and name not in MADE_BY:
            raise UserError(f"method = {name!r} has no policy in this run; there are: {', '.join(there) or 'none'}.")
        return self.run.require(f"policies/{name}", made_by=MADE_BY.get(name, ""))

    @property
    def trained_reward(self) -> tuple[str, ...]:
        """The place of the reward model, if the run trains its own."""
        return ("reward",) if self.profile.reward.model == "train" else ()

    @property
    def _dtype(self) -> torch.dtype:
        return getattr(torch, self.profile.policy.dtype)

    def _base_folder(self) -> Path | str:
        model = self.profile.policy.model
        if model == "pocket":
            return pocket_world(self.profile.task.source).policy
        return smollm2_folder() if model == "smollm2" else model

    def _load(self, folder: Path | str, with_adapter: bool) -> ActorCritic:
        """The policy in a folder, as the profile trains it."""
        policy = self.profile.policy
        adapter = {"lora": policy.lora, "quantization": policy.quantization} if with_adapter else {}
        checkpointing = policy.gradient_checkpointing
        return load_policy(folder, dtype=self._dtype, seed=self.seed, gradient_checkpointing=checkpointing, **adapter)

    def prepare_process(self) -> Self:
        """Let this process compute with the run's number of threads, and show no bars of what is loaded.

        The threads are those of the run's first use, or else the profile's. More than the machine has cores give the
        same numbers, slowly, and a warning. Bars of models and data sets would bury the output of a notebook.
        """
        transformers.logging.disable_progress_bar()
        datasets.disable_progress_bars()
        threads = self.run.manifest.get("threads") or self.profile.compute.threads or torch.get_num_threads()
        cores = os.cpu_count() or threads
        if threads > cores:
            warnings.warn(
                f"compute.threads = {threads}, but this machine has {cores} core{'s' if cores > 1 else ''}: the "
                "numbers are those of that many threads, but they come slowly.",
                stacklevel=3,
            )
        torch.set_num_threads(threads)
        return self
