"""A table that shows how far a sweep is, read anew every two seconds until nothing is under way."""

import html
import threading
from collections.abc import Callable
from typing import NamedTuple

import pandas as pd
from IPython.display import HTML, display
from ipywidgets import VBox

from rarlhf_nb.lab.explorer.plotly_widget import page
from rarlhf_nb.lab.explorer.text import error_html, framed, name_cell, table_html, text_cell
from rarlhf_nb.lab.plots.renderer import is_static

SECONDS = 2.0


class Shown(NamedTuple):
    """What the table shows: a line, one row per piece of work, and whether all of it has ended."""

    headline: str
    table: pd.DataFrame
    ended: bool


class ProgressTable(VBox):
    """The table as a widget; `stop()` ends its reading."""

    def __init__(self, read: Callable[[], Shown]) -> None:
        self.read, self.page = read, page()
        self._stopped = threading.Event()
        super().__init__([self.page])
        if not self._show():
            threading.Thread(target=self._follow, daemon=True).start()

    def stop(self) -> None:
        """Read no more."""
        self._stopped.set()

    def _follow(self) -> None:
        while not self._stopped.wait(SECONDS) and not self._show():
            pass

    def _show(self) -> bool:
        """Show what there is now; returns whether all of it has ended or cannot be read."""
        try:
            found = self.read()
        except Exception as error:  # it must appear in the page: nobody sees what a thread prints
            self.page.value = error_html(error)
            return True
        self.page.value = progress_html(found)
        return found.ended


def progress_table(read: Callable[[], Shown], interactive: bool = True) -> ProgressTable | None:
    """Follow what `read` returns. Returns the widget; a batch run shows the table once instead."""
    if not is_static(interactive):
        return ProgressTable(read)
    display(HTML(progress_html(read())))
    return None


def progress_html(shown: Shown) -> str:
    """The table; every text is escaped."""
    rows = [
        [name_cell(str(name)), *(text_cell("", str(value)) for value in row)] for name, row in shown.table.iterrows()
    ]
    return framed(f"<p>{html.escape(shown.headline)}</p>", table_html(["", *shown.table.columns], rows))
