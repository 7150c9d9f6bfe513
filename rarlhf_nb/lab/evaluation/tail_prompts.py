"""The hardest test prompts, with the completion and the reward of every method."""

import html

import pandas as pd

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.evaluation.tables import check_episodes
from rarlhf_nb.lab.methods import method_name, method_order


def tail_prompts_table(episodes: dict[str, pd.DataFrame], n: int = 8, seed: int = 0) -> pd.DataFrame:
    """The n prompts with the lowest score, and each method's completion of them.

    One row per prompt (index prompt, prompt_score); columns (method, "completion") and (method, "reward").
    seed: which sample is shown, if prompts have several.
    """
    check_episodes(episodes)
    columns = {}
    for method in method_order(episodes):
        sample = episodes[method].query("seed == @seed").drop_duplicates("prompt")
        if sample.empty:
            seeds = sorted(set(episodes[method]["seed"]))
            raise UserError(f"seed = {seed}: there is no such sample; choose one of {seeds}.")
        rows = sample.sort_values("prompt_score", kind="stable").head(n).set_index(["prompt", "prompt_score"])
        columns |= {(method, column): rows[column] for column in ("completion", "reward")}
    return pd.DataFrame(columns)


def tail_prompts_html(table: pd.DataFrame) -> str:
    """`tail_prompts_table` as HTML for notebooks: long texts wrap, and everything is escaped."""
    methods = table.columns.get_level_values(0).unique()
    head = "".join(f"<th>{html.escape(method_name(method))}</th>" for method in methods)
    body = ""
    for (prompt, score), row in table.iterrows():
        cells = "".join(_text_cell(row[method, "reward"], row[method, "completion"]) for method in methods)
        body += f"<tr>{_text_cell(score, prompt)}{cells}</tr>\n"
    head = f"<thead><tr><th>Prompt (its score)</th>{head}</tr></thead>"
    # the classes keep a notebook's TeX from replacing text between two $
    return f'<table class="tex2jax_ignore mathjax_ignore">{head}\n<tbody>\n{body}</tbody></table>'


def _text_cell(score: float, text: str) -> str:
    style = "text-align: left; vertical-align: top; white-space: normal; overflow-wrap: anywhere; min-width: 9em"
    return f'<td style="{style}"><b>{score:+.2f}</b> {html.escape(text)}</td>'
