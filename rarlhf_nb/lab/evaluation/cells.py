"""Numbers and tables as text: an interval in a cell, a table as Markdown."""

import html
import re

import numpy as np
import pandas as pd

from rarlhf_nb.lab.evaluation.metrics import MOST_SEEDS, Interval

INTERVAL, UNBROKEN = re.compile(r" \[(\S+), (\S+)\]"), "\u00a0[\\1,\u00a0\\2]"  # a viewer must not break a line in it
# What Markdown reads as markup, and only where it does: [0.5, 0.6] and tail_reward stay readable in a terminal.
MARKUP = re.compile(r"[\\`~|]|(?<=\S)\*|\*(?=\S)|(?<![^\W_])_|_(?![^\W_])|](?=[(\[:])|^[-+*#=](?=[-+*#=]*(?:\s|$))")
NUMBERED = re.compile(r"^(\d{1,9})([.)])(?=\s|$)")


def interval_cell(interval: Interval) -> str:
    """ "0.57 [0.51, 0.63]", without brackets if there is no interval, a dash if there is no value."""
    value, low, high = interval
    if np.isnan(value):
        return "–"
    if np.isnan(low):
        return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"  # Dist-1 of many texts is tiny
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def seeds_cell(seeds: float) -> str:
    """A number of `seeds_needed`: "23 seeds", "more than 1,000,000 seeds", a dash if it is unknown."""
    if np.isnan(seeds):
        return "–"
    return f"more than {MOST_SEEDS:,} seeds" if np.isinf(seeds) else f"{seeds:,.0f} seeds"


def counted(count: int, noun: str) -> str:
    """ "1 seed", "3 seeds"."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def markdown_table(cells: pd.DataFrame) -> str:
    """A table of texts as Markdown, its columns aligned for a terminal, every text escaped."""
    rows = [["", *cells.columns], *map(list, cells.itertuples(name=None))]
    rows = [[INTERVAL.sub(UNBROKEN, markdown_line(cell)) for cell in row] for row in rows]
    widths = [max(1, *map(len, column)) for column in zip(*rows, strict=True)]  # without a dash it is not a table
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    )


def markdown_line(text: str) -> str:
    """A text on one line of Markdown that shows as it stands: no HTML, image or link, no heading, list or emphasis."""
    line = html.escape(" ".join(str(text).split()), quote=False)
    return NUMBERED.sub(r"\1\\\2", MARKUP.sub(r"\\\g<0>", line))
