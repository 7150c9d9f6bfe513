"""A run as one HTML file: tables and working figures in it, opened by a double click, no network needed."""

import html
from collections.abc import Callable

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from rarlhf_nb.core.profiles import Profile
from rarlhf_nb.measuring.ledger import build_ledger, ledger_table
from rarlhf_nb.measuring.report import Report, Tables, tail_prompts_html, tail_prompts_table
from rarlhf_nb.measuring.sweeps import seed_table
from rarlhf_nb.showing import figures

# Its own colours for a dark theme; figures keep their white paper, as in the notebooks.
STYLE = """
:root { color-scheme: light dark; --text: #222; --paper: #fff; --line: #ccc; --head: #f2f2f2; }
@media (prefers-color-scheme: dark) { :root { --text: #ddd; --paper: #1b1b1b; --line: #555; --head: #2a2a2a; } }
body { font: 15px/1.5 Helvetica, Arial, sans-serif; color: var(--text); background: var(--paper);
  max-width: 1100px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; font-size: 13px; }
th, td { border: 1px solid var(--line); padding: 0.3em 0.6em; text-align: left; vertical-align: top; }
th { background: var(--head); }
.wide { overflow-x: auto; margin: 1em 0; }
details { margin: 1em 0; }
"""
# Nothing may be fetched: neither by the page itself nor by what a text in it might ask for.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:"
)


def build_page(title: str, profile: Profile, tables: Tables, report: Report, scores: pd.DataFrame) -> str:
    """The page: each question of notebook 05 with its tables and figures.

    scores: a row per run and method, of every run that differs only in its seed (`related_scores`). Every text that
    comes from data is escaped.
    """
    figure = _figures()
    episodes = tables.episodes
    parts = [
        f"<h1>{html.escape(title)}</h1><p>{html.escape(profile.description)}</p>",
        "<h2>All methods</h2>" + _table(report.main()),
        f"<details><summary>Every metric, and differences</summary>{_wide(report.to_html())}</details>",
        "<h2>Did the tail move?</h2>" + figure(figures.quantile_curves(episodes, resamples=200)),
        figure(figures.cvar_curves(episodes, resamples=200)),
        figure(figures.metric_intervals(report, ["tail_reward", "tail_reward_10", "cvar_10"])),
        "<h2>With other seeds</h2>" + _table(seed_table(scores, {"tail_reward": "tail reward"})),
        "<h2>What did it cost?</h2>" + figure(figures.metric_intervals(report, ["perplexity", "kl", "dist_2"])),
    ]
    if tables.training:
        parts.append("<h2>How did training go?</h2>" + figure(figures.training_curves(tables.training)))
    parts += [
        "<h2>Which prompts stay hard?</h2>" + _wide(tail_prompts_html(tail_prompts_table(episodes))),
        "<h2>Does it agree with the paper?</h2>" + _table(ledger_table(build_ledger(report, profile))),
    ]
    head = (
        f"<meta charset='utf-8'><meta name='viewport' content='width=device-width'><title>{html.escape(title)}</title>"
    )
    head += f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><style>{STYLE}</style>'
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>"


def _figures() -> Callable[[go.Figure], str]:
    """What turns figures into HTML; the first brings plotly.js along, all of it."""
    library = [f"<script>{get_plotlyjs()}</script>"]

    def figure_html(figure: go.Figure) -> str:
        return (library.pop() if library else "") + figure.to_html(
            full_html=False, include_plotlyjs=False, config={"responsive": True, "displaylogo": False}
        )

    return figure_html


def _table(table: pd.DataFrame) -> str:
    return _wide(table.to_html(escape=True))


def _wide(content: str) -> str:
    return f"<div class='wide'>{content}</div>"
