"""How figures are shown: live and, in a notebook that nobody watches, also as a picture or as text."""

import asyncio
import atexit
import base64
import os
import threading
import warnings
from collections.abc import Coroutine
from contextlib import suppress
from functools import cache
from typing import Any, TypeVar

import plotly.io as pio

from rarlhf_nb.lab.plots.figure_text import figure_text

Answer = TypeVar("Answer")
PATIENCE = 60.0  # seconds for one picture, which takes 0.2, or 3 for the browser to start
MimetypeRenderer = type(pio.renderers["png"]).__base__.__base__  # plotly has no public name for it
LIVE, PICTURE, TEXT = "plotly_mimetype", "png_in_time", "figure_text"
LIVE_OR_TEXT = f"{LIVE}+{TEXT}"


def is_static(interactive: bool = True) -> bool:
    """Whether to show a picture instead of a widget: on request, or if `RARLHF_STATIC=1`, as in a batch run."""
    return not interactive or os.environ.get("RARLHF_STATIC") == "1"


def use_renderer() -> str:
    """Show figures live; a batch run adds a picture if kaleido finds a browser, otherwise a text. Returns the choice.

    GitHub and nbconvert show the picture or the text. JupyterLab prefers the live figure to the text, and shows the
    picture, in one size, until the mouse is over it. One browser, started here, makes all pictures.
    """
    pio.renderers.default = LIVE
    if not is_static():
        return pio.renderers.default
    pio.renderers[TEXT] = TextInstead()
    pio.renderers.default = LIVE_OR_TEXT
    with suppress(Exception):  # kaleido is optional, and a missing or broken browser has no specific error
        pio.renderers[PICTURE] = Picture(the_browser())
        pio.renderers.default = f"{LIVE}+{PICTURE}"
    return pio.renderers.default


class TextInstead(MimetypeRenderer):
    """A figure as text for viewers that show nothing else of it."""

    def to_mimebundle(self, fig_dict: dict[str, Any]) -> dict[str, str]:
        return {"text/plain": figure_text(fig_dict)}


class Browser:
    """A browser of `kaleido` that draws figures, without a network; it runs in a thread, and ends with this process.

    A call raises `TimeoutError` after `PATIENCE`, since a broken browser may never answer.
    """

    def __init__(self) -> None:
        from kaleido import Kaleido

        self.kaleido = Kaleido(mathjax=False)  # which would come from the network, for every picture again
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self._answer(self.kaleido.open())
        atexit.register(self.close)

    def png(self, figure: dict[str, Any]) -> bytes:
        """The picture of a figure, 900 pixels wide."""
        return self._answer(self.kaleido.calc_fig(figure, opts={"format": "png", "width": 900}))

    def close(self) -> None:
        """End the browser."""
        with suppress(Exception):  # it has ended already, or this process is about to
            self._answer(self.kaleido.close())

    def _answer(self, call: Coroutine[Any, Any, Answer]) -> Answer:
        future = asyncio.run_coroutine_threadsafe(call, self.loop)
        try:
            return future.result(PATIENCE)
        finally:
            future.cancel()


the_browser = cache(Browser)


class Picture(MimetypeRenderer):
    """A figure as PNG; after the first picture that is late, figures come with a text instead."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser

    def to_mimebundle(self, fig_dict: dict[str, Any]) -> dict[str, str]:
        try:
            return {"image/png": base64.b64encode(self.browser.png(fig_dict)).decode()}
        except TimeoutError:
            pio.renderers.default = LIVE_OR_TEXT
            warnings.warn(f"no picture within {PATIENCE:g} s: from here on figures come without one", stacklevel=2)
            return TextInstead().to_mimebundle(fig_dict)
