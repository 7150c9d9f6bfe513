"""A figure as text, for viewers that show neither the live figure nor a picture."""

import base64
import html
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

MOST_LINES = 40
HOW_TO_SEE = "Open this notebook in JupyterLab to see the figure, or install Chromium and run again for a picture."


def figure_text(figure: dict[str, Any]) -> str:
    """The title, the axes and, per panel, one line for each thing that is drawn.

    figure: as `plotly.graph_objects.Figure.to_dict` gives it. A single point is shown with its value and interval,
    bars with their total, and a line with its first and last value and its range.
    """
    layout = figure["layout"]
    panels: dict[str, list[str]] = {}
    for trace in figure["data"]:
        line = _trace_text(trace)
        if line:
            panels.setdefault(trace.get("xaxis", "x"), []).append(f"  {line}")
    titles = [_plain(note["text"]) for note in layout.get("annotations", []) if note.get("text")]
    lines = [_text_of(layout.get("title")) or "Figure", *_axes(layout)]
    for number, content in enumerate(panels.values()):
        lines += ([titles[number]] if number < len(titles) else []) + content
    hidden = len(lines) - MOST_LINES
    lines = lines if hidden <= 0 else [*lines[:MOST_LINES], f"  … and {hidden} lines more"]
    return "\n".join([*lines, HOW_TO_SEE])


def _trace_text(trace: dict[str, Any]) -> str:
    """One line for a trace; empty for one that only decorates."""
    x, y = _numbers(trace.get("x")), _numbers(trace.get("y"))
    if trace.get("hoverinfo") == "skip" or not len(x) or not len(y):
        return ""
    name = _plain(trace.get("name") or (y[0] if _is_text(y) else ""))
    values = x if _is_text(y) or trace.get("orientation") == "h" else y
    if not name or _is_text(values):
        return ""
    values = values[np.isfinite(values)]
    if not len(values):
        return ""
    if trace["type"] == "bar":
        return f"{name}: {values.sum():g} in {len(values)} bars"
    if len(values) == 1:
        return f"{name}: {values[0]:.2f}{_interval(trace.get('error_x'), values[0])}"
    ends = f"{values[0]:.3g} at first, {values[-1]:.3g} at last"
    return f"{name}: {len(values)} points, {ends}, between {values.min():.3g} and {values.max():.3g}"


def _interval(error: dict[str, Any] | None, value: float) -> str:
    if not error:
        return ""
    above, below = _numbers(error["array"])[0], _numbers(error["arrayminus"])[0]
    return f" [{value - below:.2f}, {value + above:.2f}]"


def _axes(layout: dict[str, Any]) -> list[str]:
    """The axes' titles, each once."""
    lines = []
    for letter in ("x", "y"):
        titles = [_text_of(axis.get("title")) for key, axis in layout.items() if key.startswith(f"{letter}axis")]
        titles = list(dict.fromkeys(filter(None, titles)))
        lines += [f"{letter}: {'; '.join(titles)}"] if titles else []
    return lines


def _numbers(values: Any) -> np.ndarray:
    """The values of a trace, which plotly hands over as a list, an array, or an array in base64."""
    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), dtype=np.dtype(values["dtype"]))
    return np.asarray([] if values is None else values)


def _is_text(values: Sequence) -> bool:
    return np.asarray(values).dtype.kind in "OUS"


def _text_of(title: dict[str, Any] | None) -> str:
    return _plain((title or {}).get("text") or "")


def _plain(text: str) -> str:
    """Plotly's text without its tags and entities."""
    return html.unescape(" ".join(re.sub(r"<[^>]*>", " ", str(text)).split()))
