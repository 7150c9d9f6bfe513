"""How figures are shown: live and, in a notebook that nobody watches, also as a picture or as text."""

import os
import threading
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import plotly.graph_objects as go
import plotly.io as pio

from rarlhf_nb.showing.figure_text import figure_text

Answer = TypeVar("Answer")
PATIENCE = 60.0  # seconds for one picture, which takes 0.2, or 3 when the browser must start
ImageRenderer = type(pio.renderers["png"]).__base__  # plotly has no public names for these two
MimetypeRenderer = ImageRenderer.__base__
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
    warnings.filterwarnings("ignore", message="The kopts argument is ignored")  # plotly always passes it
    try:
        in_time(lambda: go.Figure().to_image("png"))
    except Exception:  # kaleido is optional, and a missing or broken browser has no specific error
        return pio.renderers.default
    import kaleido

    # Only now: without a browser the server's thread dies, and a request for a picture would wait forever.
    kaleido.start_sync_server(silence_warnings=True)
    pio.renderers[PICTURE] = PictureInTime(mime_type="image/png", b64_encode=True, format="png", width=900)
    pio.renderers.default = f"{LIVE}+{PICTURE}"
    return pio.renderers.default


class TextInstead(MimetypeRenderer):
    """A figure as text for viewers that show nothing else of it."""

    def to_mimebundle(self, fig_dict: dict[str, Any]) -> dict[str, str]:
        return {"text/plain": figure_text(fig_dict)}


class PictureInTime(ImageRenderer):
    """Plotly's renderer of pictures; after the first picture that is late, figures come with a text instead."""

    def to_mimebundle(self, fig_dict: dict[str, Any]) -> dict[str, str]:
        try:
            return in_time(lambda: super(PictureInTime, self).to_mimebundle(fig_dict))
        except TimeoutError:
            pio.renderers.default = LIVE_OR_TEXT
            warnings.warn(f"no picture within {PATIENCE:g} s: from here on figures come without one", stacklevel=2)
            return TextInstead().to_mimebundle(fig_dict)


def in_time(make: Callable[[], Answer]) -> Answer:
    """Pass on what `make` returns or raises; raise `TimeoutError` after `PATIENCE`, since kaleido may wait forever."""
    answers: list[Answer] = []
    errors: list[Exception] = []

    def call() -> None:
        try:
            answers.append(make())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True)  # a daemon, so that the process can end without it
    thread.start()
    thread.join(PATIENCE)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError
    return answers[0]
