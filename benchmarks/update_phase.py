"""What tail selection saves in the update: time and peak memory of the update phase at alpha = 0.2 and alpha = 1.

    python -m benchmarks.update_phase

One process measures the two settings alternately, in the shape of the profile `pocket-imdb` (B = 128), and prints
medians and their ratio. Peak memory is the largest amount allocated beyond that held when the update began (torch's
profiler, CPU).
"""

import json
import statistics
import time

import torch
from torch.profiler import ProfilerActivity, profile

from rarlhf_nb.core.profiles import load_profile
from rarlhf_nb.training.policy import load_policy
from rarlhf_nb.training.risk import tail_count
from rarlhf_nb.training.trainer import CVaRPPOTrainer, Estimates, Rollout, Selection
from rarlhf_nb.worlds.pocket import pocket_world
from rarlhf_nb.worlds.tasks import load_task

ALPHAS = (1.0, 0.2)
REPEATS = 9


Before = tuple[Rollout, Estimates, Selection]


def prepare(trainer: CVaRPPOTrainer, prompts: list[str], alpha: float) -> Before:
    """The arguments of `CVaRPPOTrainer.update` for one batch, with the tail of `alpha` selected."""
    rollout = trainer.sample(prompts, {})
    kept = tail_count(alpha, len(prompts))
    estimates = trainer.shape_rewards(rollout, kept)
    return rollout, estimates, trainer.select(rollout, estimates, kept)


def peak_bytes(trainer: CVaRPPOTrainer, before: Before) -> int:
    """The largest sum of live allocations during one update, in bytes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer.update(*before)
    events = sorted(
        (event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"),
        key=lambda event: event.start_ns(),
    )
    live = peak = 0
    for event in events:
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def main() -> None:
    settings = load_profile("pocket-imdb")
    policy = load_policy(pocket_world("pocket-imdb").policy)
    task = load_task(settings.task, policy.processing_class)
    prompts = task.train["prompt"].tolist()[: settings.ppo.batch_size]
    trainer = CVaRPPOTrainer(
        policy, lambda prompts, completions, **_: [float(len(c)) for c in completions], settings.ppo,
        settings.risk, settings.sampling,
    )  # fmt: skip
    seconds: dict[float, list[float]] = {alpha: [] for alpha in ALPHAS}
    for repeat in range(REPEATS + 1):
        for alpha in ALPHAS:
            before = prepare(trainer, prompts, alpha)
            started = time.perf_counter()
            trainer.update(*before)
            if repeat > 0:  # the first repeat is a warm-up
                seconds[alpha].append(time.perf_counter() - started)
    medians = {alpha: statistics.median(times) for alpha, times in seconds.items()}
    memory = {alpha: peak_bytes(trainer, prepare(trainer, prompts, alpha)) for alpha in ALPHAS}
    result = {
        "threads": torch.get_num_threads(),
        "update_seconds": {str(alpha): round(value, 4) for alpha, value in medians.items()},
        "time_ratio": round(medians[0.2] / medians[1.0], 3),
        "peak_mib": {str(alpha): round(value / 2**20, 1) for alpha, value in memory.items()},
        "memory_ratio": round(memory[0.2] / memory[1.0], 3),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
