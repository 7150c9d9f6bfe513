"""The end of notebooks 02, 03 and 04: every method on the same test prompts and seeds; and 05, which compares them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from rarlhf_nb.conversations import prompts_of
from rarlhf_nb.distributed import Ranks, connect
from rarlhf_nb.lab.evaluation.evaluate import evaluate, held_out_log_likelihoods
from rarlhf_nb.lab.evaluation.report import Report, build_report
from rarlhf_nb.lab.evaluation.tables import ALPHAS, HELD_OUT, SAMPLES, Tables, load_tables
from rarlhf_nb.lab.methods import ANALYSIS_NOTEBOOK, CONDITIONED, MethodKey
from rarlhf_nb.lab.profiles import Profile
from rarlhf_nb.lab.runs import Run
from rarlhf_nb.lab.stages.stage import Stage
from rarlhf_nb.lab.workspace import EXPERTS, Workspace
from rarlhf_nb.policy import Policy, check_vocabulary

# What makes a method when it is measured: the policies besides SFT's, and the sections of the profile. Any other method
# is a saved policy.
MADE_OF: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "base": ((), ()),
    "best_of_n": ((), ("best_of_n",)),
    "dexperts": (tuple(f"dexperts/{name}" for name in EXPERTS), ("dexperts",)),
}
OF_THE_REPORT = {"cvar_levels", "resamples"}


def evaluation_stage(workspace: Workspace, method: str) -> Stage:
    """A method is measured on the test prompts and on the held-out texts; `conditioned` at many alphas."""
    key, profile = MethodKey.parse(method), workspace.profile
    policies, sections = MADE_OF.get(method, ((key.policy,), ()))
    samples = [SAMPLES] if profile.evaluation.repeated_prompts else []
    endings = [ALPHAS] if method == CONDITIONED else [".parquet", *samples, HELD_OUT]
    determined_by_its_files = method not in MADE_OF and key.name != CONDITIONED
    settings = {
        "kind": "a saved policy" if determined_by_its_files else method,
        "evaluation": profile.evaluation.model_dump(mode="json", exclude=OF_THE_REPORT),
        "precision": [profile.policy.dtype, profile.policy.mixed_precision],
    }
    return Stage(
        workspace,
        name=f"evaluate {method}",
        notebook=key.method.notebook,
        reads=(
            "data/test.parquet",
            "data/held_out.parquet",
            *dict.fromkeys(f"policies/{name}" for name in ("sft", *policies)),
            *workspace.trained_reward,
        ),
        writes=tuple(f"evaluation/{method}{ending}" for ending in endings),
        settings=workspace.settings("sampling", "reward", *sections) | settings,
        work=_measure_alphas if method == CONDITIONED else partial(_measure, method=method),
        code=("evaluation/evaluate.py",),
        processes=profile.compute.processes,  # they change no number, so they are not among the settings
    )


def _measure(stage: Stage, method: str) -> None:
    workspace, settings = stage.workspace, stage.workspace.profile.evaluation
    test, base = workspace.data("test"), workspace.base()
    policy = workspace.policy(method, base)
    check_vocabulary(policy, base, f"method = {method!r}", "a KL between them has no meaning")
    measured = _evaluation(workspace, base)
    tables = {".parquet": measured(policy, prompts=test, settings=settings)}
    if settings.repeated_prompts:
        repeated = settings.model_copy(update={"samples_per_prompt": settings.repeated_samples})
        tables[SAMPLES] = measured(policy, prompts=test.head(settings.repeated_prompts), settings=repeated)
    texts = prompts_of(workspace.data("held_out"), "text")
    tables[HELD_OUT] = held_out_log_likelihoods(policy, texts, settings.held_out_length, settings.batch_size)
    _write(workspace, method, tables)


def _measure_alphas(stage: Stage) -> None:
    """Measure the conditioned policy from alpha 1 to alpha_min, at alphas that are evenly spaced in log alpha."""
    workspace, settings = stage.workspace, stage.workspace.profile.evaluation
    policy, measured, test = workspace.saved(CONDITIONED), _evaluation(workspace), workspace.data("test")
    alphas = (policy.risk.alpha_min ** np.linspace(0, 1, settings.alphas)).tolist()
    tables = [measured(policy.at(alpha), prompts=test, settings=settings).assign(alpha=alpha) for alpha in alphas]
    _write(workspace, CONDITIONED, {ALPHAS: pd.concat(tables, ignore_index=True)})


def _evaluation(workspace: Workspace, base: Policy | None = None) -> Callable[..., pd.DataFrame]:
    """`evaluate`, bound to what is the same for all policies of the run."""
    return partial(
        evaluate,
        reference=workspace.reference(),
        reward=workspace.reward(),
        sampling=workspace.profile.sampling,
        seed=workspace.seed,
        mixed_precision=workspace.profile.policy.mixed_precision,
        base=base,
    )


def _write(workspace: Workspace, method: str, tables: dict[str, Any]) -> None:
    """Write the tables, by the ending of their files; of several processes, one does."""
    if Ranks(connect()).main:
        for ending, table in tables.items():
            workspace.run.write(f"evaluation/{method}{ending}", table)


def report_stage(workspace: Workspace) -> Stage:
    """report.json, report.md, and summary.md with the finding and the main table; the same whatever the seed."""
    return Stage(
        workspace,
        name="report",
        notebook=ANALYSIS_NOTEBOOK,
        reads=("evaluation",),
        writes=("report.json", "report.md", "summary.md"),
        settings=_report_settings(workspace.profile),
        work=lambda stage: write_report(workspace.run, load_tables(workspace.run), workspace.profile),
        code=("evaluation",),
    )


def write_report(run: Run, tables: Tables, profile: Profile) -> Report:
    """The report of these tables; writes report.json, report.md and summary.md into the folder."""
    settings = _report_settings(profile)
    report = build_report(tables.episodes, tables.held_out, samples=tables.samples, seed=0, **settings)
    run.write("report.json", report.to_json())
    run.write("report.md", report.to_markdown())
    run.write("summary.md", report.summary())
    return report


def _report_settings(profile: Profile) -> dict[str, Any]:
    return {
        "tail_threshold": profile.task.tail_threshold,
        "cvar_levels": profile.evaluation.cvar_levels,
        "resamples": profile.evaluation.resamples,
        "toxicity": profile.task.name != "imdb-gen",
    }
