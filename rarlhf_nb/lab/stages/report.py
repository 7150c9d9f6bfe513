"""Notebook 05: all methods that were evaluated, compared with each other."""

from typing import Any

from rarlhf_nb.lab.evaluation.report import Report, build_report
from rarlhf_nb.lab.evaluation.tables import Tables, load_tables
from rarlhf_nb.lab.methods import ANALYSIS_NOTEBOOK
from rarlhf_nb.lab.profiles import Profile
from rarlhf_nb.lab.runs import Run
from rarlhf_nb.lab.stages.stage import Stage
from rarlhf_nb.lab.workspace import Workspace


def report_stage(workspace: Workspace) -> Stage:
    """report.json, report.md, and summary.md with the finding and the main table; the same whatever the seed."""
    return Stage(
        workspace,
        name="report",
        notebook=ANALYSIS_NOTEBOOK,
        reads=("evaluation",),
        writes=("report.json", "report.md", "summary.md"),
        settings=_report_settings(workspace.profile),
        work=lambda stage: write_report(workspace.run, compare(load_tables(workspace.run), workspace.profile)),
        code=("evaluation",),
    )


def compare(tables: Tables, profile: Profile) -> Report:
    """The report of these tables."""
    return build_report(tables.episodes, tables.held_out, samples=tables.samples, seed=0, **_report_settings(profile))


def write_report(run: Run, report: Report) -> None:
    """Write report.json, report.md and summary.md."""
    run.write("report.json", report.to_json())
    run.write("report.md", report.to_markdown())
    run.write("summary.md", report.summary())


def _report_settings(profile: Profile) -> dict[str, Any]:
    return {
        "tail_threshold": profile.task.tail_threshold,
        "cvar_levels": profile.evaluation.cvar_levels,
        "resamples": profile.evaluation.resamples,
        "toxicity": profile.task.name != "imdb-gen",
    }
