"""Notebook 05: all methods that were evaluated, compared with each other and with the paper."""

from rarlhf_nb.core.methods import SFT_NOTEBOOK
from rarlhf_nb.measuring.report import Report, build_report
from rarlhf_nb.measuring.tables import load_tables
from rarlhf_nb.running.stages.stage import Stage


class WriteReport(Stage):
    """Compare all methods: report.json, report.md, and summary.md with the finding and the main table."""

    @property
    def reads(self) -> tuple[str, ...]:
        return ("evaluation",)

    @property
    def writes(self) -> tuple[str, ...]:
        return ("report.json", "report.md", "summary.md")

    def run(self) -> Report:
        """Returns the report."""
        run, profile = self.workspace.run, self.workspace.profile
        run.require("evaluation", made_by=SFT_NOTEBOOK)
        tables = load_tables(run.folder)
        report = build_report(
            tables.episodes,
            tables.held_out,
            tail_threshold=profile.task.tail_threshold,
            cvar_levels=profile.evaluation.cvar_levels,
            resamples=profile.evaluation.resamples,
            seed=0,
            samples=tables.samples,
            toxicity=profile.task.name != "imdb-gen",
        )
        run.write_text("report.json", report.to_json())
        run.write_text("report.md", report.to_markdown())
        run.write_text("summary.md", report.summary())
        return report
