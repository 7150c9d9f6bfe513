"""One process of trainings on the tiny policy, for tests: `python tests/ranked.py FOLDER`, by torchrun.

FOLDER/trainings.json says what to train, by name, and the process leaves what it knows in FOLDER/<name>.
"""

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tiny import PROMPTS, good_minus_bad, ppo_trainer, quark_trainer, tiny_policy
from torch.distributed.fsdp import FullyShardedDataParallel

from rarlhf_nb import distributed
from rarlhf_nb.baselines.quark import QuarkTrainer
from rarlhf_nb.checkpoint import parameter_tensors
from rarlhf_nb.conditioned import AlphaConditionedTrainer
from rarlhf_nb.errors import UserError
from rarlhf_nb.provenance import installed_versions
from rarlhf_nb.settings import ConditionedSettings
from rarlhf_nb.trainer import CVaRPPOTrainer

RANK = int(os.environ.get("RANK", 0))


def rewards(prompts: list[str], completions: list[str], settings: dict) -> list[float]:
    """The lowest rewards all go to the last prompts of the data set, so that a rank may keep no episode."""
    if settings.get("missing_on") == RANK:
        return [float("nan")] * len(prompts)
    scores = zip(prompts, good_minus_bad(prompts, completions), strict=True)
    return [score + settings.get("spread", 0) * PROMPTS.index(prompt) for prompt, score in scores]


def check_memory(fits: int, policy: torch.nn.Module, inputs: tuple) -> None:
    """Run out of memory if more episodes than `fits` are read at once."""
    if len(inputs[0]) > fits:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def sharded(accelerator: Accelerator, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple:
    """What `Accelerator.prepare` gives under configs/gpt2-fsdp.yaml, which it takes for GPUs alone."""
    wrapped = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    return wrapped, torch.optim.Adam(wrapped.parameters(), lr=optimizer.param_groups[0]["lr"])


def ppo(own: dict, **common: Any) -> CVaRPPOTrainer:
    settings = (
        {"iterations": 5, "learning_rate": 1e-2, "micro_batch_size": 2} | own.get("ppo", {}) | own.get("risk", {})
    )
    if "conditioned" in own:
        common |= {"kind": AlphaConditionedTrainer, "conditioned": ConditionedSettings(**own["conditioned"])}
    return ppo_trainer(**settings, **common)


def quark(own: dict, **common: Any) -> QuarkTrainer:
    settings = {"steps": 6, "sample_interval": 3, "batch_size": 7, "learning_rate": 1e-2} | own["quark"]
    return quark_trainer(**settings, **common)


def seen_by_ppo(trainer: CVaRPPOTrainer) -> dict[str, Any]:
    rows = zip(trainer.rollout.completion_ids, trainer.rollout.completion_mask, strict=True)
    tokens = [ids[mask].tolist() for ids, mask in rows]
    return {"tail": trainer.targets.tail.tolist(), "prompts": trainer.rollout.prompts, "tokens": tokens}


def seen_by_quark(trainer: QuarkTrainer) -> dict[str, Any]:
    pool = trainer.pool
    prompts, completions = (
        [row[real].tolist() for row, real in zip(ids, mask, strict=True)]
        for ids, mask in ((pool.prompt_ids, pool.prompt_mask), (pool.completion_ids, pool.completion_mask))
    )
    texts = [pool.prompts, pool.completions]
    return {"texts": texts, "tokens": [prompts, completions], "bins": trainer.bins.tolist()}


def train(folder: Path, settings: dict) -> None:
    own = settings | settings.get(f"on rank {RANK}", {})
    if own.get("sharded"):
        Accelerator.prepare = sharded
    distributed.installed_versions = lambda: installed_versions() | own.get("versions", {})
    make, look = (quark, seen_by_quark) if "quark" in own else (ppo, seen_by_ppo)
    trainer = make(
        own,
        policy=tiny_policy(dtype=getattr(torch, own.get("dtype", "float64"))),
        reward=lambda prompts, completions, **columns: rewards(prompts, completions, own),
        log_file=folder / "log.jsonl",
    )
    if "fits" in own:
        trainer.policy.register_forward_pre_hook(partial(check_memory, own["fits"]))
    seen = [look(trainer) for _ in trainer]
    with trainer.ranks.summon_full_params(trainer.wrapped):
        named = parameter_tensors(trainer.policy).items()
        weights = {name.replace("_fsdp_wrapped_module.", ""): value.clone() for name, value in named}
    torch.save((type(trainer.wrapped).__name__, seen, weights), folder / f"found-{RANK}.pt")


def train_all(folder: Path, trainings: dict[str, dict]) -> None:
    """One training after another; the message of a `UserError` is left as a file."""
    for name, settings in trainings.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        try:
            train(folder / name, settings)
        except UserError as error:
            (folder / name / f"error-{RANK}.txt").write_text(str(error))


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_all(Path(sys.argv[1]), json.loads(Path(sys.argv[1], "trainings.json").read_text()))
    sys.stdout.flush()
    os._exit(0)  # the threads of gloo may abort the interpreter's end
