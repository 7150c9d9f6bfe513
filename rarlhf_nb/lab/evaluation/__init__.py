"""From a policy to numbers: evaluation of every method on the same prompts, and metrics with intervals.

Nothing here depends on how a method was trained. `evaluate` needs models; the rest needs tables only.
"""

from rarlhf_nb.lab.evaluation.cells import markdown_table
from rarlhf_nb.lab.evaluation.generations import read_generations
from rarlhf_nb.lab.evaluation.report import Report, build_report, summary_table
from rarlhf_nb.lab.evaluation.scores import gain_at_equal_kl, related_scores
from rarlhf_nb.lab.evaluation.sweep_report import SweepReport, build_sweep_report
from rarlhf_nb.lab.evaluation.tables import Tables, load_tables

__all__ = [
    "Report",
    "SweepReport",
    "Tables",
    "build_report",
    "build_sweep_report",
    "gain_at_equal_kl",
    "load_tables",
    "markdown_table",
    "read_generations",
    "related_scores",
    "summary_table",
]
