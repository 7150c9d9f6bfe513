"""Widgets that draw with Plotly in the browser, and rows of controls."""

import json
from pathlib import Path
from typing import Any

import anywidget
import plotly.graph_objects as go
import traitlets
from ipywidgets import HTML, HBox, Layout, Widget
from plotly.offline import get_plotlyjs


def script(name: str) -> str:
    """The module `name` of this folder, below what all modules share."""
    return "\n".join(Path(__file__).with_name(file).read_text() for file in ("plot.js", name))


class PlotlyWidget(anywidget.AnyWidget):
    """A widget whose module draws with Plotly, which the kernel brings along: no page loads it from elsewhere."""

    plotlyjs = traitlets.Unicode().tag(sync=True)
    content = traitlets.Dict().tag(sync=True)

    def __init__(self, module: str, content: dict[str, Any], **state: Any) -> None:
        self._esm = script(module)
        super().__init__(plotlyjs=get_plotlyjs(), content=content, **state)


class Drawing(PlotlyWidget):
    """A figure that the browser draws whole at each change, so that it shows the newest one whatever it has missed.

    A thread may redraw it: the browser sends nothing back that could come in between.
    """

    def __init__(self, figure: go.Figure) -> None:
        super().__init__("drawing.js", {}, layout=Layout(width="100%", min_width="0", overflow="hidden"))
        self.redraw(figure)

    def redraw(self, figure: go.Figure) -> None:
        """Show this figure instead."""
        self.figure = figure
        self.content = json.loads(figure.to_json())


def controls(*children: Widget) -> HBox:
    """Controls in a row that wraps where the page is narrow."""
    return HBox(children, layout=Layout(flex_flow="row wrap", align_items="center"))


def page(value: str = "") -> HTML:
    """A widget for HTML from `text.framed`; a wide table scrolls inside it."""
    return HTML(value, layout={"width": "100%", "min_width": "0"})
