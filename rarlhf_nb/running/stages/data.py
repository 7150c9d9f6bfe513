"""Notebook 01: the texts become prompts, and the test prompts get their scores."""

import pandas as pd

from rarlhf_nb.core.errors import UserError
from rarlhf_nb.running.stages.stage import Stage
from rarlhf_nb.training.policy import check_context
from rarlhf_nb.worlds.smollm2 import train_text_reward
from rarlhf_nb.worlds.tasks import UNKNOWN_LABEL, Task, load_task

TABLES = ("train", "test", "sft", "anti_expert", "held_out")


class PrepareData(Stage):
    """Cut the prompts, train the reward model where the profile says so, and score the test prompts."""

    @property
    def reads(self) -> tuple[str, ...]:
        return ()

    @property
    def writes(self) -> tuple[str, ...]:
        return (*(f"data/{name}.parquet" for name in TABLES), *self.trained_reward, "manifest.json")

    def run(self) -> Task:
        """Returns the task; the manifest gets the fingerprint of its texts."""
        workspace, settings = self.workspace, self.workspace.profile.task
        base = workspace.base()
        check_context(base, settings.prompt_length, workspace.profile.sampling.completion_length)
        task = load_task(settings, base.processing_class)
        sft_texts = task.positive_texts("train", settings.positive_label)
        others = task.train_texts[~task.train_texts["label"].isin([settings.positive_label, UNKNOWN_LABEL])]
        held_out = task.positive_texts("test", settings.positive_label)
        held_out = held_out[: workspace.profile.evaluation.held_out_texts]
        self.train_reward(task)
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
        workspace.run.note(data_fingerprint=task.fingerprint(), data_notes=task.notes)
        return task

    def train_reward(self, task: Task) -> None:
        """Where the profile says `reward.model: train`, train a classifier on the labelled training texts."""
        workspace = self.workspace
        folder = workspace.run.path("reward")
        if not self.trained_reward or (folder / "config.json").exists():
            return
        pairs = {}
        for split, texts in (("train", task.train_texts), ("test", task.test_texts)):
            labelled = texts[texts["label"].isin([0, 1])]
            if labelled["label"].nunique() < 2:
                raise UserError(
                    f"reward.model = 'train' needs texts of both labels, 0 and 1, but task.{split}_file has "
                    f"{sorted(set(texts['label']))}; add labels or name a classifier as reward.model."
                )
            pairs[split] = list(zip(labelled["text"], labelled["label"], strict=True))
        train_text_reward(
            workspace.profile.task.name,
            pairs["train"],
            pairs["test"],
            folder,
            seed=workspace.seed,
            mixed_precision=workspace.profile.policy.mixed_precision,
        )
