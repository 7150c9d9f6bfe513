"""Notebook 01: a reward model is trained if need be, the texts become prompts, and the test prompts get scores."""

from typing import Any

from rarlhf_nb.conversations import contents, prompts_of
from rarlhf_nb.data.smollm2 import train_text_reward
from rarlhf_nb.data.tasks import load_task
from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.artifacts import content_id
from rarlhf_nb.lab.methods import DATA_NOTEBOOK
from rarlhf_nb.lab.stages.stage import Stage
from rarlhf_nb.lab.workspace import Workspace
from rarlhf_nb.policy import check_context, leading_ids

TABLES = ("train", "test", "sft", "anti_expert", "held_out")


def reward_stage(workspace: Workspace) -> Stage:
    """If the profile says `reward.model: train`, a classifier learns the labelled training texts."""
    mixed_precision = workspace.profile.policy.mixed_precision
    return Stage(
        workspace,
        name="reward model",
        notebook=DATA_NOTEBOOK,
        reads=(),
        writes=("reward",),
        settings=_texts(workspace) | {"mixed_precision": mixed_precision, "seed": workspace.seed},
        work=_train_reward,
        trainings=("reward",),
    )


def data_stage(workspace: Workspace) -> Stage:
    """The prompts are cut, and those of the test split get scores; every seed has the same."""
    profile = workspace.profile
    return Stage(
        workspace,
        name="data",
        notebook=DATA_NOTEBOOK,
        reads=workspace.trained_reward,
        writes=(*(f"data/{name}.parquet" for name in TABLES), "data/task.json"),
        settings=_texts(workspace)
        | {"reward": profile.reward.model_dump(mode="json"), "held_out_texts": profile.evaluation.held_out_texts},
        work=_prepare_data,
    )


def _texts(workspace: Workspace) -> dict[str, Any]:
    """The settings of the task, with the checksums of its files, which may change under their names."""
    task = workspace.profile.task
    sources = [content_id(source) for source in (task.train_file, task.test_file, task.dataset) if source]
    return {"task": task.model_dump(mode="json"), "sources": sources, "models": workspace.models()}


def _train_reward(stage: Stage) -> None:
    """Raises `UserError` if the texts have one label only."""
    workspace, settings = stage.workspace, stage.workspace.profile.task
    task, pairs = load_task(settings, workspace.base().processing_class), {}
    for split, texts in (("train", task.train_texts), ("test", task.test_texts)):
        labelled = texts[texts["label"].isin([0, 1])]
        if labelled["label"].nunique() < 2:
            labels = sorted(map(int, texts["label"].dropna().unique()))
            raise UserError(
                f"reward.model = 'train' needs texts of both labels, 0 and 1, but task.{split}_file has {labels}; add "
                "labels or name a classifier as reward.model."
            )
        read = map(contents, prompts_of(labelled, "text"))
        pairs[split] = list(zip(read, labelled["label"], strict=True))
    with workspace.run.new_folder("reward") as folder:
        train_text_reward(
            settings.name,
            pairs["train"],
            pairs["test"],
            folder,
            seed=workspace.seed,
            mixed_precision=workspace.profile.policy.mixed_precision,
            checkpoints=stage.checkpoints("reward"),
        )


def _prepare_data(stage: Stage) -> None:
    """Raises `UserError` if prompts and completions exceed the model's context."""
    workspace, settings = stage.workspace, stage.workspace.profile.task
    base = workspace.base()
    read = len(leading_ids(base.processing_class)) + settings.prompt_length
    check_context(base, read, workspace.profile.sampling.completion_length)
    task = load_task(settings, base.processing_class)
    labels = task.train_texts["label"]
    others = task.train_texts[labels.notna() & ~labels.isin([settings.positive_label])]
    held_out = task.positive_rows("test", settings.positive_label)
    tables = {
        "train": task.train,
        "test": task.test.assign(prompt_score=workspace.reward().score(prompts_of(task.test))),
        "sft": task.positive_rows("train", settings.positive_label),
        "anti_expert": others[held_out.columns],
        "held_out": held_out.head(workspace.profile.evaluation.held_out_texts),
    }
    for name in TABLES:
        workspace.run.write(f"data/{name}.parquet", tables[name])
    workspace.run.write("data/task.json", {"fingerprint": task.fingerprint(), "notes": task.notes})
