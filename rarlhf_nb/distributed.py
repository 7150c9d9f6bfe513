"""The processes of one training, called ranks as in torch: what each does of a batch, and what all of them know.

The batch is global. Each rank samples and scores its share of the prompts. Then the episodes, which are small, are
gathered, so that every rank holds all of them and computes tail, VaR, whitening and KL as one process would. The
updated episodes are sharded again, so that no rank waits for another's tail.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object, reduce
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pad_sequence

from rarlhf_nb.errors import UserError
from rarlhf_nb.provenance import installed_versions

Rows = TypeVar("Rows")
Part = TypeVar("Part")


def connect() -> PartialState:
    """Let the processes that `torchrun` or `accelerate launch` started find each other; one process stays alone.

    If there are GPUs each process gets its own, so call it before a model is loaded; otherwise the trainer does.
    Raises `UserError` on all of them if the versions of their packages differ.
    """
    # without `cpu`, and without GPUs, accelerate takes every process for the only one
    state = PartialState(cpu="WORLD_SIZE" in os.environ and not torch.cuda.is_available())
    if state.num_processes > 1:
        versions = {f"the version of {name}": found for name, found in installed_versions().items()}
        Ranks(state).check_agreement(versions)
    return state


def accelerator(mixed_precision: str, **options: Any) -> Accelerator:
    """Returns an `Accelerator` of this precision, whatever precision other trainers of this process have.

    accelerate 1.15 keeps one for the whole process and refuses another; transformers' Trainer clears it in this way.
    """
    AcceleratorState._reset_state()
    return Accelerator(mixed_precision=mixed_precision, **options)


def autocast(device: torch.device, mixed_precision: str) -> AbstractContextManager:
    """A block whose passes are in bfloat16 if `mixed_precision` is "bf16"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision == "bf16")


class Ranks:
    """The ranks that accelerate knows; with one process no method communicates.

    count: how many there are. rank: this process's number, from 0. main: whether this is the one that logs and saves.
    sharded: whether FSDP spreads weights and optimizer over the ranks. Raises `UserError` if processes that were
    started together do not know each other, and for DeepSpeed.
    """

    def __init__(self, state: Accelerator | PartialState) -> None:
        self.count, self.rank, self.device = state.num_processes, state.process_index, state.device
        self.main = state.is_main_process
        self.sharded = state.distributed_type == DistributedType.FSDP
        if state.distributed_type == DistributedType.DEEPSPEED:
            # its optimizer steps inside `backward`, before the gradient is checked
            raise UserError("DeepSpeed is not supported: shard with FSDP, as configs/gpt2-fsdp.yaml does.")
        started = int(os.environ.get("WORLD_SIZE", 1))
        if started != self.count:
            raise UserError(
                f"WORLD_SIZE = {started}, but accelerate knows {self.count}: call rarlhf_nb.distributed.connect() "
                "before anything else of accelerate, or set ACCELERATE_USE_CPU=true."
            )

    def check_batch_size(self, name: str, size: int) -> None:
        """Raise `UserError` if a batch of that size, the setting `name`, leaves a rank without an episode."""
        if size < self.count:
            raise UserError(
                f"{name} = {size}: each of the {self.count} processes must sample an episode; raise it, or start "
                "fewer processes."
            )

    def share(self, rows: int) -> slice:
        """The rows of a batch that this rank samples: consecutive, and as many as on the others, or one more."""
        return slice(rows * self.rank // self.count, rows * (self.rank + 1) // self.count)

    def shard(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows that this rank updates on, and whether each counts: (N,) int64 and (N,) bool; N is equal on all.

        A rank that is one row short repeats a row, which does not count: all ranks must make the same calls.
        """
        own = torch.arange(self.rank, rows + -rows % self.count, self.count, device=self.device)
        return own.clamp(max=rows - 1), own < rows

    def unshard(self, own: torch.Tensor, rows: int) -> torch.Tensor:
        """What the ranks found for the rows that `shard` gave them, in the order of the batch: (N,) -> (rows,)."""
        return torch.stack(self.all_gather(own.cpu()), 1).flatten()[:rows]

    def all_gather(self, value: Any) -> list[Any]:
        """The value of every rank, in the order of the ranks. Tensors in it must be on the CPU."""
        return gather_object([value])

    def any(self, value: bool) -> bool:
        """Whether the value is true on at least one rank."""
        return any(self.all_gather(value))

    def sum(self, numbers: dict[str, float]) -> dict[str, float]:
        """The sum over all ranks for each key, to the last digit the same on all."""
        found = self.all_gather(numbers)
        return {key: sum(own[key] for own in found) for key in numbers}

    @contextmanager
    def average_gradients(self, wrapped: torch.nn.Module) -> Iterator[None]:
        """Inside the block each rank adds up a gradient of its own; at the end all get the mean of these.

        Under FSDP every backward pass averages instead, and the block changes nothing.
        """
        if not isinstance(wrapped, DistributedDataParallel):
            yield
            return
        with wrapped.no_sync():
            yield
        gradients = [parameter.grad for parameter in wrapped.parameters() if parameter.grad is not None]
        mean = reduce(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(gradients, mean.split([len(g.flatten()) for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def all_gather_rows(self, rows: Rows) -> Rows:
        """The rows of every rank as one dataclass of rows, in the order of the ranks, on this rank's device."""
        return rows if self.count == 1 else join(self.all_gather(join([rows], "cpu")), self.device)

    def map(self, work: Callable[[Part], Any], parts: Sequence[Part]) -> list[Any]:
        """What `work` gives for each of the parts, in their order; each rank does its share of them."""
        with self.shared_errors():
            own = [work(part) for part in parts[self.share(len(parts))]]
        return [result for results in self.all_gather(own) for result in results]

    @contextmanager
    def shared_errors(self) -> Iterator[None]:
        """Raise on every rank the `UserError` or `FloatingPointError` that any rank met inside the block."""
        met = None
        try:
            yield
        except (UserError, FloatingPointError) as error:
            if self.count == 1:
                raise
            met = (UserError if isinstance(error, UserError) else FloatingPointError), str(error)
        for rank, reported in enumerate(self.all_gather(met)):
            if reported is not None:
                kind, message = reported
                raise kind(f"rank {rank}: {message}")

    def check_agreement(self, facts: dict[str, Any]) -> None:
        """Raise `UserError` on every rank if `facts` are not the same on all."""
        first, *others = self.all_gather(facts)
        for rank, other in enumerate(others, 1):
            for name in first | other:
                if first.get(name) != other.get(name):
                    raise UserError(
                        f"{name} is {other.get(name)!r} on rank {rank} and {first.get(name)!r} on rank 0: start every "
                        "process with the same settings, the same data and the same packages."
                    )

    @contextmanager
    def summon_full_params(self, wrapped: torch.nn.Module) -> Iterator[None]:
        """Inside the block every rank holds all the weights of a model whose weights are sharded."""
        if isinstance(wrapped, FullyShardedDataParallel):
            with FullyShardedDataParallel.summon_full_params(wrapped, writeback=False):
                yield
        else:
            yield


def join(parts: Sequence[Rows], device: torch.device | str) -> Rows:
    """One dataclass of rows from several, in their order; prompts are padded on the left, and all else on the right."""
    joined = {}
    for name, first in vars(parts[0]).items():
        column = [getattr(part, name) for part in parts]
        if isinstance(first, list):
            joined[name] = [row for rows in column for row in rows]
        elif first is not None and first.dim() > 1:
            side = "left" if name.startswith("prompt_") else "right"
            rows = [row for rows in column for row in rows]
            joined[name] = pad_sequence(rows, batch_first=True, padding_side=side).to(device)
        elif first is not None:
            joined[name] = torch.cat(column).to(device)
    return replace(parts[0], **joined)
