"""Where a process computes."""

import os

import torch


def own_device() -> torch.device:
    """The GPU of this process, or the CPU; of several processes on a machine, each has a GPU of its own.

    `torchrun` and `accelerate launch` number them in `LOCAL_RANK`.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))
