"""A figure as text, for viewers that show neither the live figure nor a picture."""

import base64
import html
import re
from itertools import zip_longest
from numbers import Real
from textwrap import wrap
from typing import Any, NamedTuple

import numpy as np

HOW_TO_SEE = "Open this notebook in JupyterLab to see the figure, or install Chromium and run again for a picture."
MOST = 2000  # characters of the text
WIDE = 100  # characters of a line; viewers break wider ones
FIRST, NARROW = 18, 12  # least widths of the first and the other columns, in characters; headings are wrapped
FEW = 4  # points of a line that are listed one by one
# What a cell shows. If traces of one name share a panel, the one whose kind comes first is shown.
INTERVAL, POINTS, LINE, BARS, DOTS = "value [interval]", "x: y", "first → last", "count, median", "points"
KINDS = (INTERVAL, POINTS, LINE, BARS, DOTS)


class Cell(NamedTuple):
    """What the table says about one trace. span: the lowest and the highest x of a line."""

    panel: str
    name: str
    kind: str
    text: str
    span: tuple[float, float] | None = None


def figure_text(figure: dict[str, Any]) -> str:
    """The title, the axes, and a table with one cell per named trace and panel.

    figure: as `plotly.graph_objects.Figure.to_dict` gives it. Traces without a hover label only decorate, and are left
    out.
    """
    layout = figure["layout"]
    panels = _panel_titles(layout)
    cells: dict[tuple[str, str], Cell] = {}
    for cell in filter(None, (_cell(trace, panels) for trace in figure["data"])):
        before = cells.get((cell.panel, cell.name))
        if before is None or KINDS.index(cell.kind) < KINDS.index(before.kind):
            cells[cell.panel, cell.name] = cell
    head = [_text_of(layout.get("title")) or "Figure", *_axes(layout, list(cells.values()))]
    rows = _table(cells, list(panels.values()))
    room = MOST - len("\n".join([*head, "", "", "", HOW_TO_SEE]))
    return "\n".join([*head, "", *([*_shortened(rows, room), ""] if rows else []), HOW_TO_SEE])


def _panel_titles(layout: dict[str, Any]) -> dict[str, str]:
    """The title of every panel by its y axis ("y", "y2", ...), in order; panels of one row may share a title."""
    keys = sorted((key for key in layout if re.fullmatch(r"yaxis\d*", key)), key=lambda key: int(key[5:] or 1))
    axes = {key.replace("axis", ""): layout[key] for key in keys} or {"y": {}}
    notes = [(n.get("y", 1), _plain(n["text"])) for n in layout.get("annotations", []) if n.get("yref") == "paper"]
    if len(notes) == len(axes):
        return dict(zip(axes, (text for _, text in notes), strict=True))
    tops = {ref: axis.get("domain", [0, 1])[1] for ref, axis in axes.items()}
    rows = {ref: [text for y, text in notes if np.isclose(y, top)] for ref, top in tops.items()}
    return {ref: (rows[ref] or [_text_of(axis.get("title"))])[0] for ref, axis in axes.items()}


def _cell(trace: dict[str, Any], panels: dict[str, str]) -> Cell | None:
    x, y = _values(trace.get("x")), _values(trace.get("y"))
    named = y.dtype.kind == "U"  # the y axis holds the traces' names
    name = _plain(trace.get("name") or (y[0] if named and len(y) else ""))
    if not name or not len(y) or trace.get("hoverinfo") == "skip":
        return None
    x = x if len(x) else np.arange(len(y))
    panel = panels.get(trace.get("yaxis", "y"), "")
    if not _is_number(x) or not (named or _is_number(y)):
        return Cell(panel, name, DOTS, str(len(y)))
    if named and len(x) == 1 and np.isnan(x[0]):  # not measured
        return None
    if named:
        text = f"{x[0]:.2f}{_interval(trace.get('error_x'), x[0])}"
        return Cell(panel, name, INTERVAL, text) if len(x) == 1 else Cell(panel, name, DOTS, str(len(x)))
    if trace.get("type") == "bar":
        return Cell(panel, name, BARS, _bars(*((y, x) if trace.get("orientation") == "h" else (x, y))))
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if not len(y) or trace.get("mode") == "markers":
        return Cell(panel, name, DOTS, str(len(y)))
    if len(y) <= FEW:
        pairs = zip(x, y, strict=True)
        return Cell(panel, name, POINTS, ", ".join(f"{at:.3g}: {_number(value)}" for at, value in pairs))
    return Cell(panel, name, LINE, f"{_number(y[0])} → {_number(y[-1])}", (x.min(), x.max()))


def _bars(values: np.ndarray, counts: np.ndarray) -> str:
    """The total of a histogram, and the bar with its median."""
    total = counts.sum()
    if not total:
        return "0"
    return f"{_number(total)}, {_number(values[np.searchsorted(np.cumsum(counts), total / 2)])}"


def _interval(error: dict[str, Any] | None, value: float) -> str:
    if not error:
        return ""
    above, below = _values(error["array"])[0], _values(error["arrayminus"])[0]
    return f" [{value - below:.2f}, {value + above:.2f}]"


def _axes(layout: dict[str, Any], cells: list[Cell]) -> list[str]:
    """One line per direction with the axes' titles, each once, and the range of x that all lines share."""
    lines = []
    spans = {cell.span for cell in cells if cell.span}
    for letter in ("x", "y"):
        titles = [_text_of(layout[key].get("title")) for key in layout if re.fullmatch(rf"{letter}axis\d*", key)]
        text = "; ".join(dict.fromkeys(filter(None, titles)))
        if text and letter == "x" and len(spans) == 1:
            text += ", from {:.3g} to {:.3g}".format(*spans.pop())
        lines += [f"{letter}: {text}"] if text else []
    return lines


def _table(cells: dict[tuple[str, str], Cell], panels: list[str]) -> list[str]:
    """The cells as aligned lines: one row per name and one column per panel, or the reverse if panels are more."""
    used = {cell.kind for cell in cells.values()}
    if not used:
        return []
    kinds = "; ".join(kind for kind in KINDS if kind in used)
    names = list(dict.fromkeys(cell.name for cell in cells.values()))
    shown = list(dict.fromkeys(panel for panel in panels if any(cell.panel == panel for cell in cells.values())))
    texts = {place: cell.text for place, cell in cells.items()}
    if INTERVAL in used:
        names.reverse()  # such a figure lists its names from the bottom
    if len(shown) <= len(names):
        heading = [kinds, *shown] if len(panels) > 1 else ["", kinds]
        rows = [[name, *(texts.get((panel, name), "") for panel in shown)] for name in names]
    else:
        heading = [kinds, *names]
        rows = [[panel, *(texts.get((panel, name), "") for name in names)] for panel in shown]
    return _aligned(heading, rows)


def _aligned(heading: list[str], rows: list[list[str]]) -> list[str]:
    """Lines with aligned columns under wrapped headings; the columns that no longer fit beside others come below."""
    least = [FIRST, *[NARROW] * (len(heading) - 1)]
    widths = [max(width, *map(len, cells)) for width, *cells in zip(least, *rows, strict=True)]
    blocks = [[0]]
    for column in range(1, len(heading)):
        if len(blocks[-1]) > 1 and sum(widths[other] + 2 for other in [*blocks[-1], column]) > WIDE + 2:
            blocks.append([0])
        blocks[-1].append(column)
    lines = []
    for block in blocks:
        wrapped = zip_longest(*(wrap(heading[column], widths[column]) for column in block), fillvalue="")
        for row in [*wrapped, *([row[column] for column in block] for row in rows)]:
            padded = (text.ljust(widths[column]) for text, column in zip(row, block, strict=True))
            lines.append("  ".join(padded).rstrip())
        lines.append("")
    return lines[:-1]


def _shortened(lines: list[str], most: int) -> list[str]:
    """The first lines that fit into `most` characters, and how many are left out."""
    if len("\n".join(lines)) <= most:
        return lines
    last = "… and {} more lines"
    fitting = int(np.searchsorted(np.cumsum([len(line) + 1 for line in lines]), most - len(last) - 2, side="right"))
    return [*lines[:fitting], last.format(len(lines) - fitting)]


def _number(value: float) -> str:
    """Counts as whole numbers, others with two decimals or, if they are small, two digits."""
    if value == round(value):
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def _values(values: Any) -> np.ndarray:
    """The values of a trace, which plotly gives as a list, an array, or an array in base64; a number may be None."""
    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), dtype=np.dtype(values["dtype"]))
    found = np.asarray([] if values is None else values)
    if found.dtype.kind != "O":
        return found
    return found.astype(float if all(value is None or isinstance(value, Real) for value in found) else str)


def _is_number(values: np.ndarray) -> bool:
    return values.dtype.kind in "biuf"


def _text_of(title: dict[str, Any] | None) -> str:
    return _plain((title or {}).get("text") or "")


def _plain(text: str, most: int = 100) -> str:
    """Plotly's text on one line, without its tags, its entities and invisible characters."""
    words = html.unescape(re.sub(r"<[^>]*>", " ", str(text))).split()
    found = "".join(character if character.isprintable() else "�" for character in " ".join(words))
    return found if len(found) <= most else f"{found[: most - 1]}…"
