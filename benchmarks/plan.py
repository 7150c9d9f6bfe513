"""A plan on paper: the seconds and the price of an iteration on devices that need not be at hand.

Each phase takes as long as its slowest part (a roofline): FLOPs / (peak x efficiency), bytes / memory bandwidth, bytes
sent / link bandwidth, or the time in which Python starts the kernels. The parts are taken to overlap in full, so the
seconds are a lower bound for code of that efficiency.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks.costs import (
    Architecture,
    Costs,
    Memory,
    Shape,
    Strategy,
    generate_flops,
    iteration_bytes,
    memory,
    network_bytes,
    score_flops,
    trained_bytes,
    update_flops,
)
from rarlhf_nb.errors import UserError

FLOP_EFFICIENCY = 0.5  # of the peak, in large products; the next three are assumptions as well
BANDWIDTH_EFFICIENCY = 0.8
MEMORY_SHARE = 0.9  # that is free for tensors
LAUNCH_SECONDS = 1e-3  # to start the kernels of one block from Python, per pass
PHASES = ("generate", "score", "update")
NODE = 8  # devices joined by the fast link


@dataclass(frozen=True)
class Device:
    """What one device does, by its data sheet. Units: FLOP/s, bytes, bytes/s in one direction, dollars an hour."""

    name: str
    flops_16: float  # dense, bfloat16 or float16
    flops_32: float  # float32 without TF32
    memory: float
    bandwidth: float
    link_bandwidth: float = math.inf  # to the other devices of a node
    network_bandwidth: float = math.inf  # to those of other nodes, a device's share
    price: float = 0.0  # an assumption: prices differ by a factor of three between sellers
    launch_seconds: float = LAUNCH_SECONDS


DEVICES = {
    "V100": Device("V100", 125e12, 15.7e12, 32e9, 0.9e12, 150e9, 3e9, price=1.0),
    "A100": Device("A100", 312e12, 19.5e12, 80e9, 2.04e12, 300e9, 25e9, price=1.8),
    "H100": Device("H100", 989e12, 67e12, 80e9, 3.35e12, 450e9, 50e9, price=3.0),
}


def this_cpu(size: int = 2048) -> Device:
    """This machine, measured with torch's threads: a float32 product of two (size, size) matrices, and a copy.

    The rates are divided by the efficiencies that `plan` multiplies with, since they were measured, not advertised.
    """
    import psutil
    import torch

    left, right = torch.rand(2, size, size)
    buffer = torch.empty(64 * 2**20 // 4)
    flops = 2 * size**3 / _fastest(lambda: left @ right) / FLOP_EFFICIENCY
    bandwidth = 2 * 4 * buffer.numel() / _fastest(buffer.clone) / BANDWIDTH_EFFICIENCY
    return Device("this CPU", flops, flops, psutil.virtual_memory().total, bandwidth, launch_seconds=0.0)


def _fastest(work: Callable[[], object], repeats: int = 3) -> float:
    """The seconds of the fastest of several calls, after one to warm up."""
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


@dataclass(frozen=True)
class Plan:
    """An iteration of one setting on paper."""

    seconds: Costs
    limits: dict[str, str]  # phase -> what saturates: compute, memory, network or launch
    memory: Memory  # of one device
    network: Costs  # bytes that one device sends
    micro_batch_size: int
    fits: bool
    price: float  # dollars an iteration, of all devices

    @property
    def longest(self) -> str:
        """The phase that takes longest."""
        return max(PHASES, key=lambda phase: getattr(self.seconds, phase))


@dataclass(frozen=True)
class Work:
    """What one device does in an iteration, phase by phase."""

    flops: Costs
    moved: Costs  # bytes read and written in its memory
    sent: Costs  # bytes to other devices, over the slowest link
    states: float = 0.0  # bytes to the other devices of its node, while it generates
    launches: int = 0  # blocks that Python starts one by one, while it generates


def plan(
    model: Architecture,
    shape: Shape,
    device: Device,
    devices: int = 1,
    strategy: Strategy = "data parallel",
    vllm: bool = False,
) -> Plan:
    """One iteration of the global batch `shape` on `devices` of one kind.

    The micro-batch is the largest that fits, by halving the share of a process. vllm: generation by an engine that
    holds its own copy of the weights, split over the devices of a node where half of one device's memory cannot hold
    them, and that starts a token's kernels at once. Raises `UserError` for fewer devices than one.
    """
    if devices < 1:
        raise UserError(f"devices = {devices}: a plan needs at least 1.")
    group = engine_group(model, shape, device, devices) if vllm else 0
    share, held = fitting(model, shape, device, devices, strategy, group)
    work = transformers_work(model, share, devices, strategy)
    if vllm:
        work = engine_work(model, shape, devices, strategy, group, work)
    limits, seconds = {}, {}
    for phase in PHASES:
        parts = phase_seconds(work, phase, shape, device, devices)
        limits[phase] = max(parts, key=parts.get)
        seconds[phase] = parts[limits[phase]]
    total = Costs(**seconds)
    fits = held.peak <= MEMORY_SHARE * device.memory
    price = total.total / 3600 * device.price * devices
    return Plan(total, limits, held, work.sent, share.micro_batch_size, fits, price)


def phase_seconds(work: Work, phase: str, shape: Shape, device: Device, devices: int) -> dict[str, float]:
    """The seconds of a phase by each of the four things that may limit it."""
    peak = device.flops_32 if shape.weight_bytes == 4 else device.flops_16
    # a ring is as fast as its slowest link
    link = device.link_bandwidth if devices <= NODE else device.network_bandwidth
    generates = phase == "generate"
    states = work.states / device.link_bandwidth if generates else 0.0
    return {
        "compute": getattr(work.flops, phase) / (peak * FLOP_EFFICIENCY),
        "memory": getattr(work.moved, phase) / (device.bandwidth * BANDWIDTH_EFFICIENCY),
        "network": (getattr(work.sent, phase) / link + states) / BANDWIDTH_EFFICIENCY,
        "launch": work.launches * device.launch_seconds if generates else 0.0,
    }


def engine_group(model: Architecture, shape: Shape, device: Device, devices: int) -> int:
    """Over how many devices the generating engine splits its weights: 1, or those of a node."""
    return 1 if model.parameters * shape.weight_bytes <= device.memory / 2 else min(devices, NODE)


def fitting(
    model: Architecture, shape: Shape, device: Device, devices: int, strategy: Strategy, group: int
) -> tuple[Shape, Memory]:
    """The share of a process with the largest micro-batch that fits, or with single episodes where none does.

    `group` devices hold one more copy of the weights together, for an engine; 0: none do.
    """
    engine = model.parameters * shape.weight_bytes / group if group else 0.0
    size = math.ceil(shape.batch_size / devices)
    share = replace(shape, batch_size=size, kept=math.ceil(shape.updated / devices))
    while True:
        share = replace(share, micro_batch_size=size)
        held = memory(model, share, strategy, devices)
        held = replace(held, weights=held.weights + engine)
        if held.peak <= MEMORY_SHARE * device.memory or size == 1:
            return share, held
        size = math.ceil(size / 2)


def transformers_work(model: Architecture, share: Shape, devices: int, strategy: Strategy) -> Work:
    """The work of a process on its share, where transformers generates: L blocks are started for each of T tokens."""
    return Work(
        flops=Costs(generate_flops(model, share), score_flops(model, share), update_flops(model, share)),
        moved=iteration_bytes(model, share),
        sent=network_bytes(model, share, strategy, devices),
        launches=model.layers * share.completion_length,
    )


def engine_work(model: Architecture, shape: Shape, devices: int, strategy: Strategy, group: int, work: Work) -> Work:
    """The work of a process where groups of g devices generate, each group with a whole model.

    A group's episodes, weights and cache are split over its devices. They all-reduce the hidden states twice per block:
    2 L H x tokens x bytes x 2 (g - 1) / g. Under FSDP the engine needs the trained weights of all processes, once.
    """
    episodes = replace(shape, batch_size=math.ceil(shape.batch_size * group / devices), kept=None)
    tokens = shape.read * episodes.batch_size
    states = 2 * model.layers * model.hidden_size * tokens * shape.weight_bytes * 2 * (group - 1) / group
    new_weights = trained_bytes(model, shape) * (devices - 1) / devices if strategy == "FSDP" else 0.0
    return Work(
        flops=replace(work.flops, generate=generate_flops(model, episodes) / group),
        moved=replace(work.moved, generate=iteration_bytes(model, episodes).generate / group),
        sent=replace(work.sent, generate=new_weights),
        states=states,
    )
