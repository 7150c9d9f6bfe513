"""What makes numbers repeatable: seeds, seeded shuffles, and a fixed number of threads.

The number of threads matters, since it decides the order in which a matrix product is summed; after some iterations,
a difference in the last digit has grown into the first.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch


def hash_seed(*numbers: int) -> int:
    """One seed from several numbers, so that iteration m of seed s samples the same whatever came before it."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def library_seed(seed: int) -> int:
    """The seed for a library that takes 32 bits, as numpy's global state and transformers' Trainer do."""
    return seed if seed < 2**32 else hash_seed(seed)


def uniforms(seed: int, first: int, rows: int, length: int) -> np.ndarray:
    """Uniform numbers in [0, 1) for the places first ... first + rows - 1 of a batch: (rows, length).

    Each row depends on the seed and on its place alone.
    """
    return np.stack([np.random.default_rng([seed, place]).random(length) for place in range(first, first + rows)])


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global random state inside the block, and restore it afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(library_seed(seed))
        yield


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch compute with `count` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=2)  # asked for once per prompt; a batch spans at most two epochs unless B exceeds the data set
def shuffled(size: int, seed: int, epoch: int) -> np.ndarray:
    """The order of a data set in one epoch."""
    return np.random.default_rng([seed, epoch]).permutation(size)


def shuffled_stream(size: int, seed: int, start: int, count: int) -> np.ndarray:
    """Items start ... start + count - 1 of an endless stream of seeded shuffles of range(size): (count,)."""
    epochs, places = np.divmod(np.arange(start, start + count), size)
    return np.array([shuffled(size, seed, int(epoch))[at] for epoch, at in zip(epochs, places, strict=True)])
