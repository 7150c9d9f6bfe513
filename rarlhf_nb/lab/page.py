"""A run as one HTML file with its tables and working figures; it opens by a double click, without a network."""

import html
from collections.abc import Callable

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from rarlhf_nb.lab.evaluation.ledger import build_ledger, ledger_table
from rarlhf_nb.lab.evaluation.report import Report, tail_metric
from rarlhf_nb.lab.evaluation.sweep_report import build_sweep_report
from rarlhf_nb.lab.evaluation.tables import Tables
from rarlhf_nb.lab.evaluation.tail_prompts import tail_prompts_html, tail_prompts_table
from rarlhf_nb.lab.plots import figures
from rarlhf_nb.lab.plots.sweep_figures import frontier
from rarlhf_nb.lab.profiles import Profile

# The page has colours for a dark theme; the figures keep their white paper, as in the notebooks.
STYLE = """
:root { color-scheme: light dark; --text: #222; --paper: #fff; --line: #ccc; --head: #f2f2f2; }
@media (prefers-color-scheme: dark) { :root { --text: #ddd; --paper: #1b1b1b; --line: #555; --head: #2a2a2a; } }
body { font: 15px/1.5 Helvetica, Arial, sans-serif; color: var(--text); background: var(--paper);
  max-width: 1220px; margin: 1.5em auto; padding: 0 1em; }
h1 { font-size: 1.6em; margin: 0; }
h2 { margin-top: 2em; }
.finding { font-size: 1.25em; max-width: 60em; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { border: 1px solid var(--line); padding: 0.3em 0.5em; text-align: left; vertical-align: top; }
td, tbody th { white-space: nowrap; }
th { background: var(--head); }
.dataframe:not(.ledger) tr > th:first-child { position: sticky; left: 0; }
.wide { overflow-x: auto; margin: 1em 0; }
.ledger td:last-child { white-space: normal; min-width: 26em; }
details { margin: 1em 0; }
"""
# Nothing may be fetched, neither by the page nor by a text in it.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:"
)


def build_page(title: str, profile: Profile, tables: Tables, report: Report, scores: pd.DataFrame) -> str:
    """The page: what the run found, then each question of notebook 05 with its tables and figures.

    scores: one row per run and method, from every run that differs only in seed and β (`related_scores`), or
    from every run of a sweep. Every text from the data is escaped.
    """
    figure = _figures()
    episodes = tables.episodes
    parts = [
        f"<h1>{html.escape(title)}</h1><p class='finding'>{html.escape(report.finding())}</p>",
        f"<p>{html.escape(profile.description)}</p>{report.notes_html()}",
        figure(figures.metric_intervals(report, [tail_metric(report.names), "kl"])),
        "<h2>All methods</h2>" + _table(report.main()),
        f"<details><summary>Every metric, and differences</summary>{_sections(report)}</details>",
        "<h2>Did the tail move?</h2>" + figure(figures.quantile_curves(episodes, resamples=200)),
        figure(figures.cvar_curves(episodes, resamples=200)),
        figure(figures.metric_intervals(report, ["tail_reward", "tail_reward_10", "reward"])),
        *_over_seeds(scores, figure),
        "<h2>What did it cost?</h2>"
        + figure(figures.metric_intervals(report, ["perplexity", "completion_perplexity", "dist_2"])),
    ]
    if tables.training:
        parts.append("<h2>How did training go?</h2>" + figure(figures.training_curves(tables.training)))
    parts += [
        "<h2>Which prompts stay hard?</h2>" + _wide(tail_prompts_html(tail_prompts_table(episodes))),
        "<h2>Does it agree with the paper?</h2>" + _ledger(report, profile),
    ]
    head = (
        f"<meta charset='utf-8'><meta name='viewport' content='width=device-width'><title>{html.escape(title)}</title>"
    )
    head += f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><style>{STYLE}</style>'
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>"


def _over_seeds(scores: pd.DataFrame, figure: Callable[[go.Figure], str]) -> list[str]:
    """What several seeds, or the cells of a sweep, say; nothing for a run alone."""
    if scores["run"].nunique() == 1:
        return []
    report = build_sweep_report(scores)
    return ["<h2>Over seeds and settings</h2>" + _wide(report.to_html()), figure(frontier(scores))]


def _figures() -> Callable[[go.Figure], str]:
    """A function from a figure to HTML; the first figure brings the whole of plotly.js along."""
    library = [f"<script>{get_plotlyjs()}</script>"]

    def figure_html(figure: go.Figure) -> str:
        return (library.pop() if library else "") + figure.to_html(
            full_html=False, include_plotlyjs=False, config={"responsive": True, "displaylogo": False}
        )

    return figure_html


def _sections(report: Report) -> str:
    return "".join(f"<h3>{html.escape(title)}</h3>{_table(cells)}" for title, cells in report.sections().items())


def _ledger(report: Report, profile: Profile) -> str:
    return _wide(ledger_table(build_ledger(report, profile)).to_html(classes="ledger", index=False))


def _table(table: pd.DataFrame) -> str:
    return _wide(table.to_html())


def _wide(content: str) -> str:
    return f"<div class='wide'>{content}</div>"
