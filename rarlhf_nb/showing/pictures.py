"""How figures are shown: live, and in a notebook that nobody watches as pictures, too."""

import os
import threading
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import plotly.graph_objects as go
import plotly.io as pio

Answer = TypeVar("Answer")
PATIENCE = 60.0  # seconds for one picture; it takes 0.2, and 3 where a browser starts
ImageRenderer = type(pio.renderers["png"]).__base__  # plotly has no public name for it
LIVE, PICTURE = "plotly_mimetype", "png_in_time"


def is_static(interactive: bool = True) -> bool:
    """Whether to show a picture in a widget's place: asked for, or `RARLHF_STATIC=1`, as nobody is there to move it."""
    return not interactive or os.environ.get("RARLHF_STATIC") == "1"


def use_renderer() -> str:
    """Show figures live, in a batch run with a picture beside them if kaleido finds a browser; returns the choice.

    The picture is what GitHub and nbconvert show; JupyterLab shows it, in one size, until the mouse is over it. One
    browser, started here, makes them all.
    """
    pio.renderers.default = LIVE
    if not is_static():
        return pio.renderers.default
    warnings.filterwarnings("ignore", message="The kopts argument is ignored")  # plotly always passes it
    try:
        in_time(lambda: go.Figure().to_image("png"))
    except Exception:  # kaleido is optional, and a missing or broken browser has no error of its own
        return pio.renderers.default
    import kaleido

    # Only now: without a browser the server's thread dies, and whoever asks it for a picture waits for ever.
    kaleido.start_sync_server(silence_warnings=True)
    pio.renderers[PICTURE] = PictureInTime(mime_type="image/png", b64_encode=True, format="png", width=1000)
    pio.renderers.default = f"{LIVE}+{PICTURE}"
    return pio.renderers.default


class PictureInTime(ImageRenderer):
    """Plotly's renderer of pictures; after the first that does not come in time there are none."""

    def to_mimebundle(self, fig_dict: dict[str, Any]) -> dict[str, str]:
        try:
            return in_time(lambda: super(PictureInTime, self).to_mimebundle(fig_dict))
        except TimeoutError:
            pio.renderers.default = LIVE
            warnings.warn(f"no picture within {PATIENCE:g} s: figures are shown without from here on", stacklevel=2)
            return {}


def in_time(make: Callable[[], Answer]) -> Answer:
    """What `make` returns or raises; `TimeoutError` after `PATIENCE`, for kaleido may wait for its browser for ever."""
    answers: list[Answer] = []
    errors: list[Exception] = []

    def call() -> None:
        try:
            answers.append(make())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True)  # a daemon: nobody waits for it at the end either
    thread.start()
    thread.join(PATIENCE)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError
    return answers[0]
