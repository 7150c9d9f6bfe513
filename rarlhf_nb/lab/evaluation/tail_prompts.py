"""The hardest test prompts, with the completion and the reward of every method."""

import pandas as pd

from rarlhf_nb.lab.evaluation.tables import check_episodes
from rarlhf_nb.lab.methods import method_name, method_order
from rarlhf_nb.lab.texts import framed, table_html, text_cell


def tail_prompts_table(episodes: dict[str, pd.DataFrame], n: int = 8) -> pd.DataFrame:
    """The n prompts with the lowest score, and each method's completion of them, of several the first.

    One row per prompt (index prompt, prompt_score); columns (method, "completion") and (method, "reward").
    """
    check_episodes(episodes)
    columns = {}
    for method in method_order(episodes):
        sample = episodes[method].drop_duplicates("prompt")
        rows = sample.sort_values("prompt_score", kind="stable").head(n).set_index(["prompt", "prompt_score"])
        columns |= {(method, column): rows[column] for column in ("completion", "reward")}
    return pd.DataFrame(columns)


def tail_prompts_html(table: pd.DataFrame) -> str:
    """`tail_prompts_table` as HTML for notebooks: long texts are folded, and everything is escaped."""
    methods = table.columns.get_level_values(0).unique()
    rows = []
    for (prompt, score), row in table.iterrows():
        cells = [text_cell(f"{row[method, 'reward']:+.2f}", row[method, "completion"]) for method in methods]
        rows.append([text_cell(f"{score:+.2f}", prompt), *cells])
    return framed(table_html(["Prompt (its score)", *map(method_name, methods)], rows))
