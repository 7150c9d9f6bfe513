"""Notebooks 02, 03 and 04: every method that is trained, or chosen, before it is measured.

All RL methods start from the SFT policy with the same budget, data order and seed.
"""

import time
from functools import partial
from itertools import islice
from typing import Any

from datasets import Dataset

from rarlhf_nb.baselines.critic_free import train_critic_free
from rarlhf_nb.baselines.prompted import choose_prefix, prompted_policy
from rarlhf_nb.baselines.quark import QuarkTrainer
from rarlhf_nb.baselines.sft import train_sft
from rarlhf_nb.conditioned import AlphaConditionedTrainer
from rarlhf_nb.conversations import MESSAGES, prompts_of
from rarlhf_nb.errors import UserError
from rarlhf_nb.files import json_lines
from rarlhf_nb.lab.methods import BASELINES_NOTEBOOK, CONDITIONED, CRITIC_FREE, SFT_NOTEBOOK, MethodKey
from rarlhf_nb.lab.profiles import Profile, risk_of_method, training_sections
from rarlhf_nb.lab.stages.stage import Stage
from rarlhf_nb.lab.workspace import EXPERTS, Workspace
from rarlhf_nb.loop import TrainingLoop
from rarlhf_nb.policy import ActorCritic
from rarlhf_nb.settings import SFTSettings
from rarlhf_nb.trainer import CVaRPPOTrainer

SFT_LOG = "training_log.jsonl"  # beside a policy that TRL's SFTTrainer trained
PREFIXES = "prefixes.jsonl"  # beside the prompted policy
LINE_EVERY = 5.0  # seconds between two lines of a training on several processes


def sft_stage(workspace: Workspace) -> Stage:
    """SFT: the base model learns the positive texts."""
    return Stage(
        workspace,
        name="sft",
        notebook=SFT_NOTEBOOK,
        reads=("data/sft.parquet",),
        writes=("policies/sft",),
        settings=workspace.settings("policy", "sft"),
        work=_train_sft,
        trainings=("sft",),
    )


def _train_sft(stage: Stage) -> None:
    policy = stage.workspace.base(with_adapter=True)
    _fine_tune(stage, policy, "sft", stage.workspace.profile.sft, "sft", "policies/sft")


def experts_stage(workspace: Workspace) -> Stage:
    """DExperts: an expert learns the texts that SFT uses, and an anti-expert the others."""
    return Stage(
        workspace,
        name="train dexperts",
        notebook=BASELINES_NOTEBOOK,
        reads=("data/sft.parquet", "data/anti_expert.parquet"),
        writes=tuple(f"policies/dexperts/{name}" for name in EXPERTS),
        settings=workspace.settings("policy") | {"experts": workspace.profile.dexperts.experts.model_dump(mode="json")},
        work=_train_experts,
        trainings=EXPERTS,
    )


def _train_experts(stage: Stage) -> None:
    workspace, profile = stage.workspace, stage.workspace.profile
    for name, data, target in zip(EXPERTS, ("sft", "anti_expert"), stage.writes, strict=True):
        _fine_tune(stage, workspace.base(), data, profile.dexperts.experts, name, target)


def _fine_tune(stage: Stage, policy: ActorCritic, data: str, settings: SFTSettings, training: str, target: str) -> None:
    """Train the policy on the texts of a table of data/, and save it with its log in `target`."""
    workspace = stage.workspace
    texts, mixed_precision = prompts_of(workspace.data(data), "text"), workspace.profile.policy.mixed_precision
    log = train_sft(policy, texts, settings, workspace.seed, mixed_precision, stage.checkpoints(training))
    with workspace.run.new_folder(target) as folder:
        policy.save(folder)
        (folder / SFT_LOG).write_text(json_lines(log))


def prefix_stage(workspace: Workspace) -> Stage:
    """Prompting: the profile's instructions are tried on the last training prompts, and the best is kept."""
    return Stage(
        workspace,
        name="choose prefix",
        notebook=BASELINES_NOTEBOOK,
        reads=("data/train.parquet", *workspace.trained_reward),
        writes=("policies/prompted",),
        settings=workspace.settings("prompted", "policy", "reward", "sampling")
        | {"batch_size": workspace.profile.evaluation.batch_size},
        work=_choose_prefix,
    )


def _choose_prefix(stage: Stage) -> None:
    workspace, profile = stage.workspace, stage.workspace.profile
    prompts = prompts_of(workspace.data("train"))[-profile.prompted.validation_prompts :]
    base = workspace.base()
    found = choose_prefix(
        base,
        workspace.reward(),
        prompts,
        profile.prompted.prefixes,
        profile.sampling,
        workspace.seed,
        profile.evaluation.batch_size,
    )
    with workspace.run.new_folder("policies/prompted") as folder:
        prompted_policy(base, found["prefix"].iloc[0]).save(folder)
        (folder / PREFIXES).write_text(json_lines(found.to_dict("records")))


def training_stage(workspace: Workspace, method: str) -> Stage:
    """The training of a method: PPO's, `conditioned`, `quark`, or one of TRL's without a critic.

    Those that depend on alpha may have "@alpha" for another tail share. Raises `UserError` for any other method.
    """
    key = MethodKey.parse(method)
    without_critic = key.name in CRITIC_FREE
    processes = 1 if without_critic else workspace.profile.compute.processes
    return Stage(
        workspace,
        name=f"train {method}",
        notebook=key.method.notebook,
        reads=("data/train.parquet", "policies/sft", *workspace.trained_reward),
        writes=(f"policies/{method}", f"training/{method}.jsonl"),
        settings=workspace.settings("policy", "reward", "sampling")
        | _own_settings(workspace.profile, method)
        | {"processes": processes},
        work=partial(_train_without_critic if without_critic else _train, method=method),
        trainings=(method,),
        processes=processes,
    )


def _own_settings(profile: Profile, method: str) -> dict[str, Any]:
    """What determines the training of a method and no other's, as JSON."""
    sections = training_sections(profile, method) | {"watch": profile.watch}
    settings = {name: section.model_dump(mode="json") for name, section in sections.items()}
    if "critic_free" in settings:
        settings |= {"algorithm": _algorithm(method), "watch": None}  # TRL's trainers are not watched
        del settings["critic_free"]["methods"]
    if settings.get("risk", {}).get("alpha") == 1:
        settings["risk"] = None  # every episode is kept: whatever the estimator and the schedule, this is RLHF
        settings.get("critic_free", {}).update(estimator=None, tail=None)
    return settings


def make_trainer(workspace: Workspace, method: str, **changes: Any) -> TrainingLoop:
    """The trainer of a method before its first iteration; `changes` replace its arguments.

    Raises `UserError` for a method that TRL trains, since its trainers do not run one iteration at a time.
    """
    if MethodKey.parse(method).name in CRITIC_FREE:
        raise UserError(f"method = {method!r}: TRL trains it as a whole; call experiment.train({method!r}).")
    profile = workspace.profile
    sections = training_sections(profile, method)
    args = sections.pop("quark" if method == "quark" else "ppo")
    arguments = {
        "model": workspace.start(),
        "reward_funcs": workspace.reward(),
        "sampling": profile.sampling,
        "train_dataset": _train_dataset(workspace),
        "seed": workspace.seed,
        "mixed_precision": profile.policy.mixed_precision,
        "watch": profile.watch,
        "log_file": workspace.run.path("training", f"{method}.jsonl"),
        "args": args,
        **sections,
    }
    kind = {"quark": QuarkTrainer, CONDITIONED: AlphaConditionedTrainer}.get(method, CVaRPPOTrainer)
    return kind(**arguments | changes)


def _train_dataset(workspace: Workspace) -> Dataset:
    """The training prompts, in TRL's format."""
    table = workspace.data("train")
    prompts = table.assign(prompt=prompts_of(table)).drop(columns=MESSAGES, errors="ignore")
    return Dataset.from_pandas(prompts, preserve_index=False)


def _train(stage: Stage, method: str, iterations: int | None = None) -> None:
    """Train and save the policy; a training that was interrupted goes on where it stopped.

    iterations: train only so many, and save no policy.
    """
    trainer = make_trainer(stage.workspace, method, checkpoints=stage.checkpoints(method))
    several, last_line = trainer.ranks.count > 1, time.monotonic()
    for stats in islice(trainer, iterations):
        due = time.monotonic() - last_line > LINE_EVERY or trainer.iteration == trainer.iterations
        if several and trainer.ranks.main and due:  # several processes show no bar
            shown = ", ".join(f"{name} {stats[key]:.3g}" for name, key in trainer.progress.items())
            print(f"{method}: {trainer.unit} {trainer.iteration} of {trainer.iterations}, {shown}", flush=True)
            last_line = time.monotonic()
    if trainer.ranks.main and iterations is None:
        with stage.workspace.run.new_folder(f"policies/{method}") as folder:
            trainer.policy.save(folder)


def _train_without_critic(stage: Stage, method: str, iterations: int | None = None) -> None:
    """As `_train`, with TRL's GRPO or RLOO, alone or on the tail, on one process."""
    workspace, profile = stage.workspace, stage.workspace.profile
    policy = workspace.start()
    train_critic_free(
        policy,
        workspace.reward(),
        _train_dataset(workspace),
        profile.critic_free,
        profile.ppo,
        risk_of_method(profile.risk, method),
        profile.sampling,
        _algorithm(method),
        workspace.seed,
        profile.policy.mixed_precision,
        workspace.run.path("training", f"{method}.jsonl"),
        stage.checkpoints(method),
        iterations,
    )
    if iterations is None:
        with workspace.run.new_folder(f"policies/{method}") as folder:
            policy.save(folder)


def _algorithm(method: str) -> str:
    """TRL's: "grpo" or "rloo"."""
    return MethodKey.parse(method).name.removeprefix("cvar_")
