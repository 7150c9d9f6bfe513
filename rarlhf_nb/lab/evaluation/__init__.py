"""From a policy to numbers: evaluation of every method on the same prompts, and metrics with intervals.

Nothing here depends on how a method was trained. `evaluate` needs models; the rest needs tables only.
"""

from rarlhf_nb.lab.evaluation.generations import read_generations
from rarlhf_nb.lab.evaluation.report import build_report, summary_table
from rarlhf_nb.lab.evaluation.tables import load_tables

__all__ = ["build_report", "load_tables", "read_generations", "summary_table"]
