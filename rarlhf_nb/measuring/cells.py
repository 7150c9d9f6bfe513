"""Numbers and tables as text: an interval in a cell, a table as Markdown."""

import html
import re

import numpy as np
import pandas as pd

from rarlhf_nb.measuring.metrics import Interval

INTERVAL, UNBROKEN = re.compile(r" \[(\S+), (\S+)\]"), "\u00a0[\\1,\u00a0\\2]"  # a viewer must not break a line in it
ENDS = ("", "_low", "_high")  # a metric's columns in a report: the estimate and both ends of its interval


def read_interval(row: pd.Series, metric: str) -> Interval:
    """A metric's estimate and interval from a row of a report."""
    return Interval(*(row[metric + end] for end in ENDS))


def interval_cell(interval: Interval) -> str:
    """ "0.57 [0.51, 0.63]", without brackets where there is no interval, a dash where there is no value."""
    value, low, high = interval
    if np.isnan(value):
        return "–"
    if np.isnan(low):
        return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"  # Dist-1 of many texts is tiny
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def markdown_table(cells: pd.DataFrame) -> str:
    """A table of texts as Markdown, its columns aligned for a terminal, every text escaped."""
    rows = [
        ["", *cells.columns],
        *([name, *row] for name, row in zip(cells.index, cells.to_numpy(), strict=True)),
    ]
    rows = [[INTERVAL.sub(UNBROKEN, markdown_line(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    )


def markdown_line(text: str) -> str:
    """A text on one line of Markdown, escaped."""
    return html.escape(" ".join(str(text).split()), quote=False).replace("|", "\\|")
