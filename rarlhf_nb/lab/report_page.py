"""A run as one HTML file with its tables and working figures; it opens by a double click, without a network.

The page is a template, `report_page.jinja`: what the run found, then each question of notebook 05. Notebook 05 itself,
exported, would have pictures in place of figures, and exercises.
"""

from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader
from plotly.offline import get_plotlyjs

from rarlhf_nb.lab.evaluation.ledger import build_ledger, ledger_table
from rarlhf_nb.lab.evaluation.report import Report, tail_metric
from rarlhf_nb.lab.evaluation.sweep_report import build_sweep_report
from rarlhf_nb.lab.evaluation.tables import Tables
from rarlhf_nb.lab.evaluation.tail_prompts import tail_prompts_html, tail_prompts_table
from rarlhf_nb.lab.plots import figures
from rarlhf_nb.lab.plots.sweep_figures import frontier
from rarlhf_nb.lab.profiles import Profile


def build_page(title: str, profile: Profile, tables: Tables, report: Report, scores: pd.DataFrame) -> str:
    """The page, with every text from the data escaped.

    scores: one row per run and method, from every run that differs only in seed and β (`related_scores`), or
    from every run of a sweep. A run alone says nothing over seeds.
    """
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    return templates.get_template("report_page.jinja").render(
        title=title,
        profile=profile,
        tables=tables,
        report=report,
        tail_metric=tail_metric(report.names),
        over_seeds=build_sweep_report(scores) if scores["run"].nunique() > 1 else None,
        scores=scores,
        tail_prompts=tail_prompts_html(tail_prompts_table(tables.episodes)),
        ledger=ledger_table(build_ledger(report, profile)),
        figures=figures,
        frontier=frontier,
        figure_html=_figure_html,
        plotlyjs=get_plotlyjs(),
    )


def _figure_html(figure: go.Figure) -> str:
    options = {"responsive": True, "displaylogo": False}
    return figure.to_html(full_html=False, include_plotlyjs=False, config=options)
