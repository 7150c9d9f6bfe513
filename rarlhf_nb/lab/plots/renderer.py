"""How figures are shown: live and, in a notebook that nobody watches, also as a picture."""

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
from plotly.io.base_renderers import MimetypeRenderer

T = TypeVar("T")
TIMEOUT = 60.0  # seconds for one picture, which takes 0.2, or 3 for the browser to start
LIVE, PICTURE, REMEDY = "plotly_mimetype", "picture", "remedy"
LIVE_ONLY = f"{LIVE}+{REMEDY}"
HOW_TO_SEE = (
    "To see this figure, open the notebook in JupyterLab. For a picture here, install kaleido and a browser "
    "(pip install kaleido; plotly_get_chrome) and run the notebook again."
)


def is_static(interactive: bool = True) -> bool:
    """Whether to show figures instead of a widget: on request, or if `RARLHF_STATIC=1`, as in a batch run."""
    return not interactive or os.environ.get("RARLHF_STATIC") == "1"


def use_renderer() -> str:
    """Show figures live; a batch run adds a picture if kaleido finds a browser, or one line that says how to get it.

    GitHub and nbconvert show the picture or the line. JupyterLab prefers the live figure to the line, and shows the
    picture, in one size, until the mouse is over it. Returns the name of the choice.
    """
    pio.renderers.default = LIVE
    if is_static():
        pio.renderers[REMEDY] = Remedy()
        pio.renderers.default = LIVE_ONLY
        with suppress(Exception):  # kaleido is optional, and a missing or broken browser has no specific error
            pio.renderers[PICTURE] = the_pictures()
            pio.renderers.default = f"{LIVE}+{PICTURE}"
    return pio.renderers.default


class Remedy(MimetypeRenderer):
    """A line instead of a picture."""

    def to_mimebundle(self, fig_dict: dict[str, Any]) -> dict[str, str]:
        return {"text/plain": HOW_TO_SEE}


class Pictures(MimetypeRenderer):
    """Figures as PNG, 900 pixels wide, by one browser of `kaleido` without a network, which ends with this process.

    kaleido's own server would wait for ever for a browser that does not start. Here every call has a `TIMEOUT`, and
    after the first picture that is late, figures come without one.
    """

    def __init__(self) -> None:
        from kaleido import Kaleido

        self.kaleido = Kaleido(mathjax=False)  # which would come from the network, for every picture again
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self._wait(self.kaleido.open())
        atexit.register(self.close)

    def to_mimebundle(self, fig_dict: dict[str, Any]) -> dict[str, str]:
        try:
            png = self._wait(self.kaleido.calc_fig(fig_dict, opts={"format": "png", "width": 900}))
        except TimeoutError:
            pio.renderers.default = LIVE_ONLY
            warnings.warn(f"no picture within {TIMEOUT:g} s: from here on figures come without one", stacklevel=2)
            return Remedy().to_mimebundle(fig_dict)
        return {"image/png": base64.b64encode(png).decode()}

    def close(self) -> None:
        """End the browser."""
        with suppress(Exception):  # it has ended already, or this process is about to
            self._wait(self.kaleido.close())

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(call, self.loop)
        try:
            return future.result(TIMEOUT)
        finally:
            future.cancel()


the_pictures = cache(Pictures)
