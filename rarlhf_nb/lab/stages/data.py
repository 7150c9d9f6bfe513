"""Notebook 01: a reward model is trained if need be, the texts become prompts, and the test prompts get scores."""

from typing import Any

import pandas as pd

from rarlhf_nb.data.smollm2 import train_text_reward
from rarlhf_nb.data.tasks import UNKNOWN_LABEL, load_task
from rarlhf_nb.errors import UserError
from rarlhf_nb.files import identity
from rarlhf_nb.lab.methods import DATA_NOTEBOOK
from rarlhf_nb.lab.stages.stage import Stage
from rarlhf_nb.policy import check_context

TABLES = ("train", "test", "sft", "anti_expert", "held_out")


class DataStage(Stage):
    """A stage that reads the texts from where the profile says."""

    notebook = DATA_NOTEBOOK
    reads: tuple[str, ...] = ()

    def source_settings(self) -> dict[str, Any]:
        """The settings of the task, with the checksums of its files, which may change under their names."""
        task = self.workspace.profile.task
        sources = [identity(source) for source in (task.train_file, task.test_file, task.dataset) if source]
        return {"task": task.model_dump(mode="json"), "sources": sources, "models": self.workspace.models()}


class TrainReward(DataStage):
    """Where the profile says `reward.model: train`, a classifier learns the labelled training texts."""

    name = "reward model"
    modules = ("data.tasks", "data.smollm2")
    writes = ("reward",)
    trainings = ("reward",)

    @property
    def settings(self) -> dict[str, Any]:
        return self.source_settings() | {"mixed_precision": self.workspace.profile.policy.mixed_precision}

    def work(self) -> None:
        """Raises `UserError` where the texts have one label only."""
        workspace = self.workspace
        task, pairs = load_task(workspace.profile.task, workspace.base().processing_class), {}
        for split, texts in (("train", task.train_texts), ("test", task.test_texts)):
            labelled = texts[texts["label"].isin([0, 1])]
            if labelled["label"].nunique() < 2:
                raise UserError(
                    f"reward.model = 'train' needs texts of both labels, 0 and 1, but task.{split}_file has "
                    f"{sorted(set(texts['label']))}; add labels or name a classifier as reward.model."
                )
            pairs[split] = list(zip(labelled["text"], labelled["label"], strict=True))
        workspace.run.write_folder(
            "reward",
            lambda folder: train_text_reward(
                workspace.profile.task.name,
                pairs["train"],
                pairs["test"],
                folder,
                seed=workspace.seed,
                mixed_precision=workspace.profile.policy.mixed_precision,
                checkpoints=self.checkpoints("reward"),
            ),
        )

    def result(self) -> None:
        return None


class PrepareData(DataStage):
    """Cut the prompts, and score those of the test split."""

    name = "data"
    modules = ("data.tasks", "rewards")
    seeded = False  # every seed has the same prompts

    @property
    def reads(self) -> tuple[str, ...]:
        return self.trained_reward

    @property
    def writes(self) -> tuple[str, ...]:
        return (*(f"data/{name}.parquet" for name in TABLES), "data/task.json")

    @property
    def settings(self) -> dict[str, Any]:
        profile = self.workspace.profile
        return self.source_settings() | {
            "reward": profile.reward.model_dump(mode="json"),
            "held_out_texts": profile.evaluation.held_out_texts,
        }

    def work(self) -> None:
        """Raises `UserError` where prompts and completions exceed the model's context."""
        workspace, settings = self.workspace, self.workspace.profile.task
        base = workspace.base()
        check_context(base, settings.prompt_length, workspace.profile.sampling.completion_length)
        task = load_task(settings, base.processing_class)
        sft_texts = task.positive_texts("train", settings.positive_label)
        others = task.train_texts[~task.train_texts["label"].isin([settings.positive_label, UNKNOWN_LABEL])]
        held_out = task.positive_texts("test", settings.positive_label)
        held_out = held_out[: workspace.profile.evaluation.held_out_texts]
        test = task.test.assign(prompt_score=workspace.reward().score(task.test["prompt"].tolist()))
        tables = (
            task.train,
            test,
            pd.DataFrame({"text": sft_texts}),
            others[["text"]],
            pd.DataFrame({"text": held_out}),
        )
        for name, table in zip(TABLES, tables, strict=True):
            workspace.run.write_table(f"data/{name}.parquet", table)
        workspace.run.write_json("data/task.json", {"fingerprint": task.fingerprint(), "notes": task.notes})

    def result(self) -> list[str]:
        """The rows that were dropped from a data set of the paper, and why."""
        return self.workspace.run.read_json("data/task.json")["notes"]
