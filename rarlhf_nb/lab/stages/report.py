"""Notebook 05: all methods that were evaluated, compared with each other."""

from typing import Any

from rarlhf_nb.lab.evaluation.report import Report, build_report, read_report
from rarlhf_nb.lab.evaluation.tables import Tables, load_tables
from rarlhf_nb.lab.methods import ANALYSIS_NOTEBOOK
from rarlhf_nb.lab.runs import Run
from rarlhf_nb.lab.stages.stage import Stage


class WriteReport(Stage):
    """Compare all methods: report.json, report.md, and summary.md with the finding and the main table."""

    name, notebook, modules = "report", ANALYSIS_NOTEBOOK, ("lab.evaluation.report", "lab.evaluation.tables")
    reads = ("evaluation",)
    writes = ("report.json", "report.md", "summary.md")
    seeded = False  # its resamples are the same for every run

    @property
    def settings(self) -> dict[str, Any]:
        profile = self.workspace.profile
        return {
            "tail_threshold": profile.task.tail_threshold,
            "cvar_levels": profile.evaluation.cvar_levels,
            "resamples": profile.evaluation.resamples,
            "toxicity": profile.task.name != "imdb-gen",
        }

    def work(self) -> None:
        run = self.workspace.run
        write_report(run, compare(load_tables(run), self.settings))

    def result(self) -> Report:
        """The report."""
        return read_report(self.workspace.run)


def compare(tables: Tables, settings: dict[str, Any]) -> Report:
    """The report of these tables; settings: those of `WriteReport`."""
    return build_report(tables.episodes, tables.held_out, samples=tables.samples, seed=0, **settings)


def write_report(run: Run, report: Report) -> None:
    """Write report.json, report.md and summary.md."""
    run.write_text("report.json", report.to_json())
    run.write_text("report.md", report.to_markdown())
    run.write_text("summary.md", report.summary())
