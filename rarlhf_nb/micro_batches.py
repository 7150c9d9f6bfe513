"""How many episodes go through the policy at once: as many as the setting says, or as memory holds.

`ppo.micro_batch_size: auto` begins, like null, with the whole batch. Whatever the setting, work that runs out of memory
begins again with half as many episodes at a time, and gives the result of having begun that way.

On a CPU nothing is noticed: Linux promises more memory than there is, and kills a process that uses it. Unless the
process has a limit of its own (`ulimit -v`), give a number there.
"""

from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from rarlhf_nb.distributed import Ranks
from rarlhf_nb.errors import UserError

Result = TypeVar("Result")
Pieces = tuple[torch.Tensor, ...]


class MicroBatches:
    """Cuts a batch into pieces of at most `size` episodes.

    size: `ppo.micro_batch_size`. batch_size: the episodes of a whole batch. Raises `UserError` for "auto" if FSDP
    shards the training: its processes wait for one another in every pass, so that none can begin again alone.
    """

    def __init__(self, size: int | Literal["auto"] | None, batch_size: int, ranks: Ranks) -> None:
        self.size, self.ranks = size if isinstance(size, int) else batch_size, ranks
        if ranks.sharded and size == "auto":
            raise UserError(
                "ppo.micro_batch_size = 'auto': under FSDP no process can begin a pass again alone; give a number."
            )

    def run(self, episodes: int, work: Callable[[Pieces], Result]) -> Result:
        """What `work` gives for the indices 0 ... episodes - 1 in pieces; it begins again if memory runs out.

        Raises `UserError` if memory runs out for a single episode or under FSDP.
        """
        while True:
            try:
                return work(torch.arange(episodes).split(self.size))
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
            clear_device_cache(garbage_collection=True)  # only now: the error held on to the tensors
            self._halve(min(self.size, episodes))

    def _halve(self, size: int) -> None:
        if size == 1:
            raise UserError(
                "ppo.micro_batch_size = 1: not even one episode fits into memory. Set policy.gradient_checkpointing, "
                "train an adapter (policy.lora) on a base of fewer bits (policy.quantization), shorten "
                "task.prompt_length or sampling.completion_length, or take a smaller model."
            )
        self.size = size // 2
        if self.ranks.sharded:
            raise UserError(
                f"{size} episodes at once do not fit into the memory of rank {self.ranks.rank}: set "
                f"ppo.micro_batch_size = {self.size}."
            )
        print(f"ppo.micro_batch_size: {size} episodes at once do not fit into memory; from now on {self.size}")
