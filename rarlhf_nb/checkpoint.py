"""Checkpoints of a training: tensors in safetensors, the rest in JSON, nothing pickled; whole or not at all.

A checkpoint is a folder named after its iteration. It is written beside its place and renamed when it is complete and
on the disk, with the checksums of its files; the last two are kept, so that one is left when the other is damaged.
"""

import json
import os
import shutil
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from rarlhf_nb.errors import UserError
from rarlhf_nb.files import checksum

TENSORS, STATE, CHECKSUMS = "tensors.safetensors", "state.json", "checksums.json"
KEPT = 2
MOST_OFTEN = 20  # the least wait, in multiples of what saving takes: it costs at most a twentieth
UNFINISHED = ".unfinished"


class Checkpoint(NamedTuple):
    """The state of a training after an iteration."""

    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one training, in a folder of their own.

    seconds: the wait between two of them, longer where saving takes more than a twentieth of it; 0 saves after every
    iteration. A training that is interrupted saves one at any time.
    """

    def __init__(self, folder: Path, seconds: float = 10.0) -> None:
        self.folder, self.seconds = folder, seconds
        self.saved_at, self.cost = time.monotonic(), 0.0  # cost: seconds that the last one took

    def due(self) -> bool:
        """Whether it is time for the next one."""
        wait = max(self.seconds, MOST_OFTEN * self.cost) if self.seconds else 0.0
        return time.monotonic() - self.saved_at >= wait

    def save(self, iteration: int, checkpoint: Checkpoint) -> None:
        """Write the checkpoint of an iteration and drop all but the last two.

        Later ones, which the training has passed over by going on from an earlier one, are dropped too.
        """
        started = time.monotonic()
        unfinished = self.folder / UNFINISHED
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}, unfinished / TENSORS)
        (unfinished / STATE).write_text(json.dumps(checkpoint.state))
        (unfinished / CHECKSUMS).write_text(
            json.dumps({name: checksum(unfinished / name) for name in (TENSORS, STATE)})
        )
        for name in (TENSORS, STATE, CHECKSUMS, "."):
            _flush(unfinished / name)
        place = self._place(iteration)
        shutil.rmtree(place, ignore_errors=True)
        os.rename(unfinished, place)
        _flush(self.folder)
        places = self._places()
        at = places.index(place)
        for dropped in places[:at] + places[at + KEPT :]:
            shutil.rmtree(dropped)
        self.saved_at = time.monotonic()
        self.cost = self.saved_at - started

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None. A damaged one is named in a warning and passed over."""
        for place in self._places():
            try:
                checksums = json.loads((place / CHECKSUMS).read_text())
                damaged = [name for name in (TENSORS, STATE) if checksum(place / name) != checksums[name]]
            except (OSError, ValueError, KeyError, TypeError):
                damaged = [CHECKSUMS]
            if not damaged:
                return Checkpoint(load_file(place / TENSORS), json.loads((place / STATE).read_text()))
            warnings.warn(f"{place / damaged[0]} is damaged: an older checkpoint is used if there is one", stacklevel=2)
        return None

    def drop(self, iteration: int) -> None:
        """Remove the checkpoint of an iteration, where there is one: its weights turned out to be bad."""
        shutil.rmtree(self._place(iteration), ignore_errors=True)

    def latest_with(self, settings: dict[str, Any], otherwise: str = "choose another run name") -> Checkpoint | None:
        """The newest whole checkpoint, or None.

        Raises `UserError` where its state has other `settings`. otherwise: what else the message offers to do.
        """
        found = self.latest()
        if found is not None and found.state["settings"] != settings:
            raise UserError(
                f"the checkpoints in {self.folder} belong to a training with other settings: delete that folder, or "
                f"{otherwise}."
            )
        return found

    def clear(self) -> None:
        """Remove them all: the training is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _place(self, iteration: int) -> Path:
        return self.folder / f"{iteration:08d}"

    def _places(self) -> list[Path]:
        """The folders of all checkpoints, newest first."""
        return sorted((path for path in self.folder.glob("[0-9]*") if path.is_dir()), reverse=True)


def _flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], groups: list[dict]) -> None:
    """Give an optimizer the state of `optimizer_tensors` and the parameter groups that it had."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            number, key = rest.split(".")
            state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})
