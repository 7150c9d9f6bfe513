"""Everything random has a seed: seeds made of several numbers, seeded shuffles, and torch seeded inside a block."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch


def hash_seed(*numbers: int) -> int:
    """One seed out of several numbers: iteration m of seed s samples the same however it was reached."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's global random state set to `seed` inside, and as it was again outside."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@lru_cache(maxsize=2)  # a batch asks for it once a prompt, and spans two epochs at most unless B exceeds the data set
def shuffled(size: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the data set in one epoch over it."""
    return np.random.default_rng([seed, epoch]).permutation(size)


def shuffled_stream(size: int, seed: int, start: int, count: int) -> np.ndarray:
    """Items start .. start + count - 1 of seeded shuffles of range(size), one after the other: (count,)."""
    epochs, places = np.divmod(np.arange(start, start + count), size)
    return np.array([shuffled(size, seed, int(epoch))[at] for epoch, at in zip(epochs, places, strict=True)])
