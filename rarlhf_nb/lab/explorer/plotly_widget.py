"""Widgets that draw with Plotly in the browser, and rows of controls."""

from functools import cache
from pathlib import Path
from typing import Any

import anywidget
import plotly.graph_objects as go
from ipywidgets import HTML, HBox, Label, Layout, Widget, widget_serialization
from plotly.offline import get_plotlyjs
from traitlets import Instance

WIDE, NARROW = {"width": "22em"}, {"width": "12em"}  # layouts of controls


def script(name: str) -> str:
    """The module `name` of this folder, below what all modules share."""
    return "\n".join(Path(__file__).with_name(file).read_text() for file in ("plot.js", name))


@cache
def plotly_source() -> Label:
    """Plotly for the browser, which the kernel sends once: no page loads it from elsewhere."""
    return Label(get_plotlyjs())


class PlotlyWidget(anywidget.AnyWidget):
    """A widget whose module draws with Plotly. Python's later messages to it go through `mail`, which is never shown.

    The mail is a core widget, since anywidget delivers nothing to a widget that took over two seconds to start, as it
    does on a busy page.
    """

    plotlyjs = Instance(Label).tag(sync=True, **widget_serialization)
    mail = Instance(Label).tag(sync=True, **widget_serialization)

    def __init__(self, module: str, mail: str = "", **state: Any) -> None:
        self._esm = script(module)
        super().__init__(plotlyjs=plotly_source(), mail=Label(mail), **state)


class Drawing(PlotlyWidget):
    """A figure that the browser draws whole at each change. It is complete from the start, as a saved page shows it.

    A thread may redraw it: the browser sends nothing back that could come in between.
    """

    def __init__(self, figure: go.Figure) -> None:
        self.figure = figure
        layout = Layout(width="100%", min_width="0", overflow="hidden")
        super().__init__("drawing.js", figure.to_json(), layout=layout)

    def redraw(self, figure: go.Figure) -> None:
        """Show this figure instead."""
        self.figure, self.mail.value = figure, figure.to_json()


def controls(*children: Widget) -> HBox:
    """Controls in a row that wraps if the page is narrow."""
    return HBox(children, layout=Layout(flex_flow="row wrap", align_items="center"))


def page(value: str = "") -> HTML:
    """A widget for HTML from `text.framed`; a wide table scrolls inside it."""
    return HTML(value, layout={"width": "100%", "min_width": "0"})
