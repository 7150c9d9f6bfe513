"""What a stage of a run is."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from rarlhf_nb.running.workspace import Workspace


@dataclass(frozen=True)
class Stage(ABC):
    """A piece of work of a run. With the profile, the seed and the files that it reads, its result is determined.

    `reads` and `writes` are paths in the run folder; a folder stands for all that lies in it.
    """

    workspace: Workspace

    @property
    @abstractmethod
    def reads(self) -> tuple[str, ...]:
        """What earlier stages must have left."""

    @property
    @abstractmethod
    def writes(self) -> tuple[str, ...]:
        """What this stage leaves."""

    @abstractmethod
    def run(self) -> Any:
        """Do the work; returns what a notebook shows of it."""

    @property
    def trained_reward(self) -> tuple[str, ...]:
        """The reward model, where the run trains its own."""
        return ("reward",) if self.workspace.profile.reward.model == "train" else ()
