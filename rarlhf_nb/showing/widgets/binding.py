"""How a figure becomes a widget and is redrawn."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import plotly.graph_objects as go
from ipywidgets import HTML, Box, HBox, Layout, Widget

from rarlhf_nb.showing.explorer_figures import Change


class Drawing:
    """A complete figure as `widget`, redrawn by `..._changes`.

    Complete, since only what a figure holds at first is in the state that a saved page or Voila shows. What has not
    changed is not set again: plotly's checks of every property are what a move of a slider costs.
    """

    def __init__(self, figure: go.Figure) -> None:
        self.widget = go.FigureWidget(figure.update_layout(autosize=True))
        self.widget._config = {"responsive": True}
        # What holds it may shrink below the figure's present width: else the figure never gets narrower again.
        self.box = Box([self.widget], layout=Layout(width="100%", min_width="0", overflow="hidden", display="block"))
        self._last: list[Change] = [{} for _ in figure.data]

    def redraw(self, changes: Sequence[Change], titles: Sequence[str] = ()) -> None:
        """Alter every trace, and the panels' titles, in one message to the front end."""
        with self.widget.batch_update():
            for trace, change, last in zip(self.widget.data, changes, self._last, strict=True):
                for key, value in change.items():
                    if key not in last or not _same(value, last[key]):
                        trace.update({key: value})  # not trace[key]: a dict would replace what stays
                        last[key] = value
            for annotation, title in zip(self.widget.layout.annotations, titles, strict=False):
                annotation.text = title


def _same(value: object, last: object) -> bool:
    if isinstance(value, np.ndarray) or isinstance(last, np.ndarray):
        return np.array_equal(value, last)
    return value == last


@contextmanager
def no_collection() -> Iterator[None]:
    """Python collects its garbage before or after, not inside: a full one takes 0.2 s of a kernel that holds torch."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def controls(*children: Widget) -> HBox:
    """Controls in a row that wraps where the page is narrow."""
    return HBox(children, layout=Layout(flex_flow="row wrap", align_items="center"))


def page(value: str = "") -> HTML:
    """A widget for HTML as `text.framed` makes it; a wide table scrolls in itself."""
    return HTML(value, layout={"width": "100%", "min_width": "0"})
