"""The end of notebooks 02, 03 and 04: every method on the same test prompts with the same seeds."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from rarlhf_nb.distributed import Ranks, connect
from rarlhf_nb.lab.evaluation.evaluate import evaluate, held_out_log_likelihoods
from rarlhf_nb.lab.evaluation.tables import ALPHAS, HELD_OUT, SAMPLES
from rarlhf_nb.lab.methods import CONDITIONED, MethodKey
from rarlhf_nb.lab.stages.stage import Stage
from rarlhf_nb.lab.workspace import EXPERTS, Workspace
from rarlhf_nb.policy import Policy, check_vocabulary

# By method, the settings and the module that make it when it is measured; any other method is a saved policy.
MADE_OF = {
    "base": ((), ()),
    "best_of_n": (("best_of_n",), ("baselines.best_of_n",)),
    "dexperts": (("dexperts",), ("baselines.dexperts",)),
}
OF_THE_REPORT = {"cvar_levels", "resamples"}


@dataclass(frozen=True)
class Evaluate(Stage):
    """Measure a method on the test prompts and on the held-out texts."""

    method: str

    @property
    def name(self) -> str:
        return f"evaluate {self.method}"

    @property
    def notebook(self) -> str:
        return MethodKey.parse(self.method).method.notebook

    @property
    def modules(self) -> tuple[str, ...]:
        _, modules = MADE_OF.get(self.method, ((), ()))
        return ("lab.evaluation.evaluate", *modules)

    @property
    def reads(self) -> tuple[str, ...]:
        several = {"base": (), "best_of_n": (), "dexperts": tuple(f"dexperts/{name}" for name in EXPERTS)}
        own = several.get(self.method, (MethodKey.parse(self.method).policy,))
        data = ("data/test.parquet", "data/held_out.parquet")
        policies = dict.fromkeys(f"policies/{name}" for name in ("sft", *own))
        return (*data, *policies, *self.trained_reward)

    @property
    def writes(self) -> tuple[str, ...]:
        samples = [SAMPLES] if self.workspace.profile.evaluation.repeated_prompts else []
        return tuple(f"evaluation/{self.method}{ending}" for ending in (".parquet", *samples, HELD_OUT))

    @property
    def settings(self) -> dict[str, Any]:
        profile = self.workspace.profile
        own, _ = MADE_OF.get(self.method, ((), ()))
        settings = {name: getattr(profile, name).model_dump(mode="json") for name in ("sampling", "reward", *own)}
        # whether it is not determined by its files alone
        named = self.method in MADE_OF or MethodKey.parse(self.method).name == CONDITIONED
        return settings | {
            "kind": self.method if named else "a saved policy",
            "evaluation": profile.evaluation.model_dump(mode="json", exclude=OF_THE_REPORT),
            "precision": [profile.policy.dtype, profile.policy.mixed_precision],
            "models": self.workspace.models(),
        }

    @property
    def processes(self) -> int:
        """They change no number in the tables, so they are not among the settings."""
        return self.workspace.profile.compute.processes

    def work(self) -> None:
        workspace, profile = self.workspace, self.workspace.profile
        settings, test = profile.evaluation, workspace.data("test")
        base = workspace.base()
        policy = workspace.policy(self.method, base)
        check_vocabulary(policy, base, f"method = {self.method!r}", "a KL between them has no meaning")
        measure = self._measure(base)
        tables = {".parquet": measure(policy, prompts=test, settings=settings)}
        if settings.repeated_prompts:
            repeated = settings.model_copy(update={"samples_per_prompt": settings.repeated_samples})
            tables[SAMPLES] = measure(policy, prompts=test.head(settings.repeated_prompts), settings=repeated)
        texts = workspace.data("held_out")["text"].tolist()
        tables[HELD_OUT] = held_out_log_likelihoods(policy, texts, settings.held_out_length, settings.batch_size)
        self._write(tables)

    def result(self) -> pd.DataFrame:
        """The episodes table."""
        return self.workspace.run.read_table(self.writes[0])

    def _write(self, tables: dict[str, pd.DataFrame]) -> None:
        """Write the tables, by the ending of their files; of several processes, one does."""
        if Ranks(connect()).main:
            for ending, table in tables.items():
                self.workspace.run.write_table(f"evaluation/{self.method}{ending}", table)

    def _measure(self, base: Policy | None = None) -> Callable[..., pd.DataFrame]:
        """`evaluate`, bound to what is the same for all policies of the run."""
        workspace, profile = self.workspace, self.workspace.profile
        return partial(
            evaluate,
            reference=workspace.reference(),
            reward=workspace.reward(),
            sampling=profile.sampling,
            seed=workspace.seed,
            mixed_precision=profile.policy.mixed_precision,
            base=base,
        )


@dataclass(frozen=True)
class EvaluateAlphas(Evaluate):
    """Measure the conditioned policy at many alphas, from 1 to alpha_min and evenly in log alpha."""

    method: str = CONDITIONED

    @property
    def writes(self) -> tuple[str, ...]:
        return (f"evaluation/{self.method}{ALPHAS}",)

    def work(self) -> None:
        workspace, settings = self.workspace, self.workspace.profile.evaluation
        policy, measure, test = workspace.saved(self.method), self._measure(), workspace.data("test")
        alphas = (policy.risk.alpha_min ** np.linspace(0, 1, settings.alphas)).tolist()
        tables = [measure(policy.at(alpha), prompts=test, settings=settings).assign(alpha=alpha) for alpha in alphas]
        self._write({ALPHAS: pd.concat(tables, ignore_index=True)})


def evaluation_stage(workspace: Workspace, method: str) -> Evaluate:
    """The stage that measures a method."""
    return EvaluateAlphas(workspace) if method == CONDITIONED else Evaluate(workspace, method)
