"""The processes of one training, called ranks as in torch: what each does of a batch, and what all of them know.

The batch is global. Each rank samples and scores its share of the prompts. Then the episodes, which are small, are
gathered, so that every rank holds all of them and computes tail, VaR, whitening and KL as one process would. The
updated episodes are dealt out again, so that no rank waits for another's tail.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.utils import gather
from safetensors.torch import load, save
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.functional import pad

from rarlhf_nb.errors import UserError
from rarlhf_nb.provenance import installed_versions

Rows = TypeVar("Rows")
Part = TypeVar("Part")
FAILURES = {failure.__name__: failure for failure in (UserError, FloatingPointError)}  # which are raised on all ranks


def connect() -> PartialState:
    """Let the processes that `torchrun` or `accelerate launch` started find each other; one process stays alone.

    Where there are GPUs each process gets its own, so call it before a model is loaded; otherwise the trainer does.
    Raises `UserError` on all of them where the versions of their packages differ.
    """
    # without `cpu`, and without GPUs, accelerate takes every process for the only one
    state = PartialState(cpu="WORLD_SIZE" in os.environ and not torch.cuda.is_available())
    if state.num_processes > 1:
        versions = {f"the version of {name}": found for name, found in installed_versions().items()}
        Ranks(state).check_agreement(versions)
    return state


class Ranks:
    """The ranks that accelerate knows; with one process no method communicates.

    count: how many there are. rank: this process's number, from 0. main: whether this is the one that logs and saves.
    sharded: whether FSDP spreads weights and optimizer over the ranks. Raises `UserError` where processes that were
    started together do not know each other, and for DeepSpeed.
    """

    def __init__(self, state: Accelerator | PartialState) -> None:
        self.count, self.rank, self.device = state.num_processes, state.process_index, state.device
        self.main = state.is_main_process
        self.sharded = state.distributed_type == DistributedType.FSDP
        if state.distributed_type == DistributedType.DEEPSPEED:
            # its optimizer steps inside `backward`, before the watch has seen the gradient
            raise UserError("DeepSpeed is not supported: shard with FSDP, as configs/gpt2-fsdp.yaml does.")
        started = int(os.environ.get("WORLD_SIZE", 1))
        if started != self.count:
            raise UserError(
                f"WORLD_SIZE = {started}, but accelerate knows {self.count}: call rarlhf_nb.distributed.connect() "
                "before anything else of accelerate, or set ACCELERATE_USE_CPU=true."
            )

    def share(self, rows: int) -> slice:
        """The rows of a batch that this rank samples: consecutive, and as many as on the others, or one more."""
        return slice(rows * self.rank // self.count, rows * (self.rank + 1) // self.count)

    def deal(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows that this rank updates on, and whether each counts: (N,) int64 and (N,) bool; N is equal on all.

        A rank that is one row short repeats a row, which does not count: all ranks must make the same calls.
        """
        own = torch.arange(self.rank, rows + -rows % self.count, self.count)
        return own.clamp(max=rows - 1), own < rows

    def undeal(self, own: torch.Tensor, rows: int) -> torch.Tensor:
        """What the ranks found for the rows that `deal` gave them, in the order of the batch: (N,) -> (rows,)."""
        found = torch.tensor(self.gather(own.tolist()), dtype=own.dtype)
        return found.T.flatten()[:rows]

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, in the order of the ranks; it must survive JSON."""
        if self.count == 1:
            return [value]
        return [json.loads(reported) for reported in self._exchange(json.dumps(value).encode())]

    def any(self, value: bool) -> bool:
        """Whether the value is true on at least one rank."""
        return any(self.gather(value))

    def summed(self, numbers: dict[str, float]) -> dict[str, float]:
        """The sum over all ranks for each key, to the last digit the same on all."""
        found = self.gather(numbers)
        return {key: sum(own[key] for own in found) for key in numbers}

    def together(self, work: Callable[[], Rows]) -> Rows:
        """Do each rank's own part of `work`, which gives a dataclass of rows, and join the rows in the ranks' order.

        A `UserError` or `FloatingPointError` on one rank is raised on all.
        """
        found = self._shared_fate(work)
        if self.count == 1:
            return found
        return _joined(found, [load(part) for part in self._exchange(save(_tensors(found)))])

    def spread(self, parts: Sequence[Part], work: Callable[[Part], Any]) -> list[Any]:
        """What `work` gives for each of the parts, in their order; of N ranks, each does every N-th part.

        A result must survive JSON. A `UserError` or `FloatingPointError` on one rank is raised on all.
        """
        own = self._shared_fate(lambda: [work(part) for part in parts[self.rank :: self.count]])
        found = self.gather(own)
        return [found[place % self.count][place // self.count] for place in range(len(parts))]

    def _shared_fate(self, work: Callable[[], Any]) -> Any:
        if self.count == 1:
            return work()
        found, failure = None, None
        try:
            found = work()
        except tuple(FAILURES.values()) as error:
            failure = [next(name for name, kind in FAILURES.items() if isinstance(error, kind)), str(error)]
        for rank, reported in enumerate(self.gather(failure)):
            if reported is not None:
                raise FAILURES[reported[0]](f"rank {rank}: {reported[1]}")
        return found

    def check_agreement(self, facts: dict[str, Any]) -> None:
        """Raise `UserError` on every rank where `facts`, which must survive JSON, are not the same on all."""
        first, *others = self.gather(facts)
        for rank, other in enumerate(others, 1):
            for name in first | other:
                if first.get(name) != other.get(name):
                    raise UserError(
                        f"{name} is {other.get(name)!r} on rank {rank} and {first.get(name)!r} on rank 0: start every "
                        "process with the same settings, the same data and the same packages."
                    )

    @contextmanager
    def whole(self, wrapped: torch.nn.Module) -> Iterator[None]:
        """Inside the block every rank holds all the weights of a model whose weights are sharded."""
        if isinstance(wrapped, FullyShardedDataParallel):
            with FullyShardedDataParallel.summon_full_params(wrapped, writeback=False):
                yield
        else:
            yield

    def _exchange(self, payload: bytes) -> list[bytes]:
        """The bytes of every rank."""
        own = torch.frombuffer(bytearray(payload), dtype=torch.uint8).to(self.device)
        sizes = gather(torch.tensor([len(own)], device=self.device)).tolist()
        rows = gather(pad(own, (0, max(sizes) - len(own))).unsqueeze(0)).cpu()
        return [row[:size].numpy().tobytes() for row, size in zip(rows, sizes, strict=True)]


def join(parts: Sequence[Rows]) -> Rows:
    """One dataclass of rows from several, in their order, on the device of the first."""
    return _joined(parts[0], [_tensors(part) for part in parts])


def _tensors(rows: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """Everything in a dataclass of rows as tensors on the CPU, by dotted name; texts as bytes."""
    found = {}
    for field in fields(rows):
        value, name = getattr(rows, field.name), f"{prefix}{field.name}"
        if is_dataclass(value):
            found |= _tensors(value, f"{name}.")
        elif isinstance(value, list):
            found[name] = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        elif value is not None:
            found[name] = value.cpu().clone(memory_format=torch.contiguous_format)  # safetensors wants no shared memory
    return found


def _joined(own: Any, parts: list[dict[str, torch.Tensor]], prefix: str = "") -> Any:
    """The rows of all `parts` in a dataclass like `own`; prompts are padded on the left, and all else on the right."""
    joined = {}
    for field in fields(own):
        value, name = getattr(own, field.name), f"{prefix}{field.name}"
        if is_dataclass(value):
            joined[field.name] = _joined(value, parts, f"{name}.")
        elif isinstance(value, list):
            joined[field.name] = [text for part in parts for text in json.loads(part[name].numpy().tobytes())]
        elif value is not None:
            rows = _padded([part[name] for part in parts], left=field.name.startswith("prompt_"))
            joined[field.name] = rows.to(value.device)
    return replace(own, **joined)


def _padded(parts: list[torch.Tensor], left: bool) -> torch.Tensor:
    """(B_i,) or (B_i, T_i) -> (sum of B_i,) or (sum of B_i, most T)."""
    if parts[0].dim() > 1:
        longest = max(part.shape[1] for part in parts)
        gaps = [longest - part.shape[1] for part in parts]
        parts = [pad(part, (gap, 0) if left else (0, gap)) for part, gap in zip(parts, gaps, strict=True)]
    return torch.cat(parts)
