"""The terms of the course, and every logged key and metric with its formula, unit, scope and time (glossary.yaml)."""

import html
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pandas as pd
import yaml


@cache
def _glossary() -> dict:
    return yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


def logged_keys(where: str) -> list[str]:
    """The keys that the glossary explains for a log or report, such as "training log" or "Quark's log"."""
    return list(_glossary()["keys"][where])


def glossary_table() -> pd.DataFrame:
    """All logged keys and metrics as one table: columns where, key, formula, unit, over, taken."""
    return pd.DataFrame(
        [
            {"where": where, "key": key, **explained}
            for where, keys in _glossary()["keys"].items()
            for key, explained in keys.items()
        ]
    )


def terms_table() -> pd.DataFrame:
    """The terms of the course in the order of their appearance: columns term, meaning, equation."""
    return pd.DataFrame(
        [
            {"term": term, "meaning": found["meaning"], "equation": found.get("equation", "")}
            for term, found in _glossary()["terms"].items()
        ]
    )


def folded_html(table: pd.DataFrame, title: str) -> str:
    """A table for notebooks that opens when its title is clicked; every text is whole and escaped."""
    rows = [_row("th", table.columns), *(_row("td", cells) for cells in table.to_numpy())]
    return f"<details><summary><b>{html.escape(title)}</b></summary><table>{''.join(rows)}</table></details>"


def _row(tag: str, cells: Iterable) -> str:
    texts = (html.escape(str(cell)) for cell in cells)
    return "<tr>" + "".join(f'<{tag} style="text-align: left">{text}</{tag}>' for text in texts) + "</tr>"
