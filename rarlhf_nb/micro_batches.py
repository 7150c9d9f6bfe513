"""How many episodes go through the policy at once: as many as the settings say, or as memory holds.

`ppo.micro_batch_size: auto` rehearses the first update with 1, 2, 4, ... episodes until memory is full: until a pass
runs out of it or, on a CUDA device, until a pass with twice as many would. Whatever the setting, work that runs out of
memory later begins again with half as many episodes at a time, and gives the result of having begun that way.

On a CPU nothing can be measured: Linux promises more memory than there is, and kills a process that uses it. `auto` is
then the whole update unless the process has a limit of its own (`ulimit -v`), so give a number.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from rarlhf_nb.distributed import Ranks
from rarlhf_nb.errors import UserError

Part, Result = TypeVar("Part"), TypeVar("Result")
Pieces = tuple[torch.Tensor, ...]
FREE_SHARE = 0.1  # of the free memory, which the passes of `auto` leave: a later batch may be longer


class MicroBatches:
    """Cuts a batch into pieces of at most `size` episodes.

    size: `ppo.micro_batch_size`. most: the episodes of a whole batch, used for None and, until a size is found,
    for "auto". Raises `UserError` for "auto" where FSDP shards the training.
    """

    def __init__(self, size: int | Literal["auto"] | None, most: int, ranks: Ranks) -> None:
        self.size = size if isinstance(size, int) else most
        self.unknown = size == "auto"
        self.ranks = ranks
        if self.unknown and ranks.sharded:
            raise UserError(
                "ppo.micro_batch_size = 'auto': under FSDP no process can rehearse a pass alone; give a number."
            )

    def run(self, episodes: int, work: Callable[[Pieces], Result], joint: bool = False) -> Result:
        """What `work` gives for the indices 0 ... episodes - 1 in pieces; it begins again where memory runs out.

        joint: whether the ranks wait for one another in `work`, so that none can begin again alone. Raises `UserError`
        where memory runs out for a single episode or in joint work of several ranks.
        """
        while True:
            size = min(self.size, episodes)
            result = unless_memory_runs_out(work, torch.arange(episodes).split(size))
            if result is not None:
                return result
            if size == 1:
                raise not_even_one()
            self.size = size // 2
            if joint and self.ranks.count > 1:
                raise UserError(
                    f"{size} episodes at once do not fit into the memory of rank {self.ranks.rank}: set "
                    f"ppo.micro_batch_size = {self.size}, or auto."
                )
            print(f"ppo.micro_batch_size: {size} episodes at once do not fit into memory; from now on {self.size}")

    def settle(self, episodes: int, rehearse: Callable[[torch.Tensor], Any], spare: int) -> None:
        """Before an update on `episodes` episodes per rank: agree on one size, which "auto" must first find.

        rehearse: makes a pass on the episodes at these indices, without the other ranks. spare: bytes that the
        optimizer will take. Raises `UserError` where one episode does not fit.
        """
        found = self.unknown
        if found:
            self.size, self.unknown = self._doubled(episodes, rehearse, spare), False
        self.size = min(self.ranks.all_gather(self.size))
        if found and self.ranks.main:
            print(f"ppo.micro_batch_size: auto found that {self.size} episodes at once fit into memory")

    def _doubled(self, episodes: int, rehearse: Callable[[torch.Tensor], Any], spare: int) -> int:
        """The last of 1, 2, 4, ... episodes, and at most all, that fit."""
        device, fitting, size = self.ranks.device, 0, 1
        while fitting < episodes:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            if unless_memory_runs_out(rehearse, torch.arange(size)) is None:
                break
            fitting, size = size, min(2 * size, episodes)
            if not _room_for_twice(device, spare):
                break
        if not fitting:
            raise not_even_one()
        return fitting


def unless_memory_runs_out(work: Callable[[Part], Result], part: Part) -> Result | None:
    """What `work` gives for its part of a batch; None where memory ran out; what it held is then freed."""
    try:
        return work(part)
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
    clear_device_cache(garbage_collection=True)  # only now: the error held on to the tensors
    return None


def not_even_one() -> UserError:
    """The error where a single episode is too much."""
    return UserError(
        "ppo.micro_batch_size = 1: not even one episode fits into memory. Set policy.gradient_checkpointing, train an "
        "adapter (policy.lora) on a base of fewer bits (policy.quantization), shorten task.prompt_length or "
        "sampling.completion_length, or take a smaller model."
    )


def _room_for_twice(device: torch.device, spare: int) -> bool:
    """Whether twice what the last pass held would fit beside `spare` bytes; True where nobody can tell."""
    if device.type != "cuda":
        return True
    used = torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)  # what is left are gradients
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return 2 * used + spare <= (1 - FREE_SHARE) * (torch.cuda.mem_get_info(device)[0] + cached)
