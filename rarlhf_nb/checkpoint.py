"""Checkpoints of a training: folders whose files are compared with their checksums before any of them is used.

The last two are kept, so that one is left when the other is damaged. Those of the trainers of this package hold tensors
in safetensors and the rest in JSON; those of transformers' Trainer see `resumable`.
"""

import json
import shutil
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from rarlhf_nb.errors import UserError
from rarlhf_nb.files import checksum, files_of, written_whole

TENSORS, STATE, CHECKSUMS = "tensors.safetensors", "state.json", "checksums.json"
PREFIX = "checkpoint-"  # of a folder's name, before the iteration; transformers' Trainer has the same
KEPT = 2


class Checkpoint(NamedTuple):
    """The state of a training after an iteration."""

    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one training, in a folder of their own.

    seconds: the least wait between two of them; 0 saves after every iteration. A training that is interrupted saves
    one at any time.
    """

    def __init__(self, folder: Path, seconds: float = 30.0) -> None:
        self.folder, self.seconds, self.saved_at = folder, seconds, time.monotonic()

    def due(self) -> bool:
        """Whether it is time for the next one."""
        return time.monotonic() - self.saved_at >= self.seconds

    def save(self, iteration: int, checkpoint: Checkpoint) -> None:
        """Write the checkpoint of an iteration, whole or not at all."""
        with written_whole(self._place(iteration)) as new:
            new.mkdir()
            save_file({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}, new / TENSORS)
            self.complete(new, checkpoint.state)
        self.drop_others(iteration)

    def complete(self, folder: Path, state: dict[str, Any]) -> None:
        """Add a state, and the checksums of all files, without which a checkpoint is not used."""
        (folder / STATE).write_text(json.dumps(state))
        sums = {file.relative_to(folder).as_posix(): checksum(file) for file in files_of(folder)}
        (folder / CHECKSUMS).write_text(json.dumps(sums))
        self.saved_at = time.monotonic()

    def drop_others(self, iteration: int) -> None:
        """Remove all but the checkpoint of an iteration and the one before.

        So unfinished ones go, and later ones, which the training has passed over by going on from an earlier one.
        """
        places = self._places()
        earlier = places[places.index(self._place(iteration)) :]
        kept = [place for place in earlier if (place / CHECKSUMS).exists()][:KEPT]
        for dropped in set(places) - set(kept):
            shutil.rmtree(dropped)

    def newest(self, settings: dict[str, Any] | None = None, otherwise: str = "choose another run name") -> Path | None:
        """The folder of the newest whole checkpoint, or None. A damaged one is named in a warning and passed over.

        Raises `UserError` if its state has other `settings` than those given. otherwise: what else to do about that.
        """
        place = next((place for place in self._places() if self._is_whole(place)), None)
        if place and settings and read_state(place)["settings"] != settings:
            raise UserError(
                f"the checkpoints in {self.folder} belong to a training with other settings: delete that folder, or "
                f"{otherwise}."
            )
        return place

    def _is_whole(self, place: Path) -> bool:
        if not (place / CHECKSUMS).exists():  # the process ended before `complete`
            return False
        damaged = [place / CHECKSUMS]
        with suppress(OSError, ValueError, TypeError, AttributeError):
            sums = json.loads((place / CHECKSUMS).read_text())
            damaged = [place / name for name in sums if checksum(place / name) != sums[name]]
        if damaged:
            warnings.warn(f"{damaged[0]} is damaged: an older checkpoint is used if there is one", stacklevel=2)
        return not damaged

    def latest(
        self, settings: dict[str, Any] | None = None, otherwise: str = "choose another run name"
    ) -> Checkpoint | None:
        """What `save` wrote into the `newest`, or None; arguments and errors are the same."""
        place = self.newest(settings, otherwise)
        return None if place is None else Checkpoint(load_file(place / TENSORS), read_state(place))

    def drop(self, iteration: int) -> None:
        """Remove the checkpoint of an iteration if there is one: its weights turned out to be bad."""
        shutil.rmtree(self._place(iteration), ignore_errors=True)

    def clear(self) -> None:
        """Remove them all: the training is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _place(self, iteration: int) -> Path:
        return self.folder / f"{PREFIX}{iteration}"

    def _places(self) -> list[Path]:
        """The folders of all checkpoints, newest first."""
        places = self.folder.glob(f"{PREFIX}[0-9]*")
        return sorted(places, key=lambda place: int(place.name.removeprefix(PREFIX)), reverse=True)


def read_state(place: Path) -> dict[str, Any]:
    """The state of the checkpoint in a folder."""
    return json.loads((place / STATE).read_text())


def parameter_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The parameters of a model that are trained, by name: "parameter.<name>"."""
    return {f"parameter.{name}": parameter.detach() for name, parameter in _trained(model)}


def load_parameters(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Copy the values of `parameter_tensors` into a model."""
    with torch.no_grad():
        for name, parameter in _trained(model):
            parameter.copy_(tensors[f"parameter.{name}"])


def _trained(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The tensors of an optimizer's state by name, "optimizer.<parameter>.<key>"."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{number}.{key}": value for number, own in state.items() for key, value in own.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Give an optimizer the state of `optimizer_tensors`; it keeps its own learning rate."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name in tensors:
        if name.startswith("optimizer."):
            _, number, key = name.split(".")
            state.setdefault(int(number), {})[key] = tensors[name]
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
