"""The end of notebooks 02, 03 and 04: every method on the same test prompts with the same seeds."""

from dataclasses import dataclass
from functools import partial

import pandas as pd

from rarlhf_nb.core.methods import find_method
from rarlhf_nb.measuring.evaluation import evaluate, held_out_log_likelihoods
from rarlhf_nb.measuring.tables import HELD_OUT, SAMPLES
from rarlhf_nb.running.stages.stage import Stage


@dataclass(frozen=True)
class Evaluate(Stage):
    """Measure a method on the test prompts and on the held-out texts."""

    method: str

    @property
    def reads(self) -> tuple[str, ...]:
        policies = {"sft", self.method} if find_method(self.method).trained else {"sft"}
        data = ("data/test.parquet", "data/held_out.parquet")
        return (*data, *(f"policies/{name}" for name in sorted(policies)), *self.trained_reward)

    @property
    def writes(self) -> tuple[str, ...]:
        samples = [SAMPLES] if self.workspace.profile.evaluation.repeated_prompts else []
        return tuple(f"evaluation/{self.method}{ending}" for ending in (".parquet", *samples, HELD_OUT))

    def run(self) -> pd.DataFrame:
        """Returns the episodes table."""
        workspace, profile = self.workspace, self.workspace.profile
        settings, test = profile.evaluation, workspace.data("test")
        base = workspace.base()
        policy = workspace.policy(self.method, base)
        measure = partial(
            evaluate,
            policy,
            workspace.reference(),
            workspace.reward(),
            sampling=profile.sampling,
            seed=workspace.seed,
            mixed_precision=profile.policy.mixed_precision,
            base=base,
        )
        episodes = measure(prompts=test, settings=settings)
        self._write(".parquet", episodes)
        if settings.repeated_prompts:
            repeated = settings.model_copy(update={"samples_per_prompt": settings.repeated_samples})
            self._write(SAMPLES, measure(prompts=test.head(settings.repeated_prompts), settings=repeated))
        texts = workspace.data("held_out")["text"].tolist()
        self._write(HELD_OUT, held_out_log_likelihoods(policy, texts, settings.held_out_length, settings.batch_size))
        return episodes

    def _write(self, ending: str, table: pd.DataFrame) -> None:
        self.workspace.run.write_table(f"evaluation/{self.method}{ending}", table)
