"""Turning a figure into a widget, and redrawing it."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import plotly.graph_objects as go
from ipywidgets import HTML, Box, HBox, Layout, Widget

from rarlhf_nb.showing.explorer_figures import Change


class _Figure(go.FigureWidget):
    """A figure that a thread may change while messages from the front end arrive.

    While a widget takes in a message, it holds back its notifications, and a change that another thread makes in that
    moment never reaches the front end. So messages and changes take turns.
    """

    turn = threading.RLock()

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """Take in a message from the front end."""
        with self.turn:
            super().set_state(sync_data)


class Drawing:
    """A complete figure as `widget`, which `redraw` changes in place.

    It is complete from the start, because a saved page shows only its initial state. Unchanged properties are
    not set again, because plotly's validation of each property dominates the cost of moving a slider.
    """

    def __init__(self, figure: go.Figure) -> None:
        self.widget = _Figure(figure.update_layout(autosize=True))
        self.widget._config = {"responsive": True}
        # The box may shrink below the figure's current width; otherwise the figure could never get narrower again.
        self.box = Box([self.widget], layout=Layout(width="100%", min_width="0", overflow="hidden", display="block"))
        self._last: list[Change] = [{} for _ in figure.data]

    @contextmanager
    def changing(self) -> Iterator[go.FigureWidget]:
        """The widget; what is changed in its traces goes to the front end in one message at the end."""
        with self.widget.turn, self.widget.batch_update():
            yield self.widget

    def redraw(self, changes: Sequence[Change]) -> None:
        """Change all traces in one message to the front end."""
        with self.changing() as widget:
            for trace, change, last in zip(widget.data, changes, self._last, strict=True):
                for key, value in change.items():
                    if key not in last or not _same(value, last[key]):
                        trace.update({key: value})  # not trace[key] = value: a dict would replace the other settings
                        last[key] = value


def _same(value: object, last: object) -> bool:
    if isinstance(value, np.ndarray) or isinstance(last, np.ndarray):
        return np.array_equal(value, last)
    return value == last


def controls(*children: Widget) -> HBox:
    """Controls in a row that wraps where the page is narrow."""
    return HBox(children, layout=Layout(flex_flow="row wrap", align_items="center"))


def page(value: str = "") -> HTML:
    """A widget for HTML from `text.framed`; a wide table scrolls inside it."""
    return HTML(value, layout={"width": "100%", "min_width": "0"})
