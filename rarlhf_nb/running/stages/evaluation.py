"""The end of notebooks 02, 03 and 04: every method on the same test prompts with the same seeds."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from rarlhf_nb.core.methods import CONDITIONED, RISK_NOTEBOOK, find_method, split_alpha
from rarlhf_nb.measuring.evaluation import evaluate, held_out_log_likelihoods
from rarlhf_nb.measuring.tables import ALPHAS, HELD_OUT, SAMPLES
from rarlhf_nb.running.stages.stage import Stage
from rarlhf_nb.running.workspace import EXPERTS
from rarlhf_nb.training.ranks import Ranks, connect

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
        return find_method(self.method).notebook

    @property
    def modules(self) -> tuple[str, ...]:
        _, modules = MADE_OF.get(self.method, ((), ()))
        return ("measuring.evaluation", *modules)

    @property
    def reads(self) -> tuple[str, ...]:
        several = {"base": (), "best_of_n": (), "dexperts": tuple(f"dexperts/{name}" for name in EXPERTS)}
        name, _ = split_alpha(self.method)
        own = several.get(self.method, (CONDITIONED if name == CONDITIONED else self.method,))
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
        name, _ = split_alpha(self.method)
        settings = {name: getattr(profile, name).model_dump(mode="json") for name in ("sampling", "reward", *own)}
        return settings | {
            "kind": self.method if self.method in MADE_OF or name == CONDITIONED else "a saved policy",
            "evaluation": profile.evaluation.model_dump(mode="json", exclude=OF_THE_REPORT),
            "precision": [profile.policy.dtype, profile.policy.mixed_precision],
            "models": self.workspace.models(),
        }

    @property
    def processes(self) -> int:
        """They change no number of the tables, so they are none of the settings."""
        return self.workspace.profile.compute.processes

    def work(self) -> None:
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
        tables = {".parquet": measure(prompts=test, settings=settings)}
        if settings.repeated_prompts:
            repeated = settings.model_copy(update={"samples_per_prompt": settings.repeated_samples})
            tables[SAMPLES] = measure(prompts=test.head(settings.repeated_prompts), settings=repeated)
        texts = workspace.data("held_out")["text"].tolist()
        tables[HELD_OUT] = held_out_log_likelihoods(policy, texts, settings.held_out_length, settings.batch_size)
        if Ranks(connect()).main:
            for ending, table in tables.items():
                workspace.run.write_table(f"evaluation/{self.method}{ending}", table)

    def result(self) -> pd.DataFrame:
        """The episodes table."""
        return self.workspace.run.read_table(f"evaluation/{self.method}.parquet")


class EvaluateAlphas(Stage):
    """Measure the conditioned policy at many alphas, from 1 to alpha_min and evenly in log alpha."""

    name, notebook, modules = f"evaluate {CONDITIONED}", RISK_NOTEBOOK, ("measuring.evaluation",)
    writes = (f"evaluation/{CONDITIONED}{ALPHAS}",)

    @property
    def reads(self) -> tuple[str, ...]:
        return ("data/test.parquet", "policies/sft", f"policies/{CONDITIONED}", *self.trained_reward)

    @property
    def settings(self) -> dict[str, Any]:
        profile = self.workspace.profile
        settings = {name: getattr(profile, name).model_dump(mode="json") for name in ("sampling", "reward")}
        return settings | {
            "evaluation": profile.evaluation.model_dump(mode="json", exclude=OF_THE_REPORT),
            "precision": [profile.policy.dtype, profile.policy.mixed_precision],
            "models": self.workspace.models(),
        }

    def work(self) -> None:
        workspace, profile = self.workspace, self.workspace.profile
        policy, reference, reward = workspace.saved(CONDITIONED), workspace.reference(), workspace.reward()
        places = np.linspace(0, 1, profile.evaluation.alphas)
        tables = [
            evaluate(
                policy.at(alpha),
                reference,
                reward,
                workspace.data("test"),
                profile.sampling,
                profile.evaluation,
                workspace.seed,
                profile.policy.mixed_precision,
            ).assign(alpha=alpha)
            for alpha in (policy.risk.alpha_min**places).tolist()
        ]
        workspace.run.write_table(self.writes[0], pd.concat(tables, ignore_index=True))

    def result(self) -> pd.DataFrame:
        """The episodes table, with the column alpha."""
        return self.workspace.run.read_table(self.writes[0])
