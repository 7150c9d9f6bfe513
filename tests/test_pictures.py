"""Pictures beside the figures: made where they can be, and never waited for too long."""

import threading

import plotly.graph_objects as go
import plotly.io as pio
import pytest

from rarlhf_nb.showing import pictures


@pytest.fixture(autouse=True)
def renderers(monkeypatch):
    monkeypatch.setattr(pio.renderers, "default", pio.renderers.default)
    monkeypatch.setenv("RARLHF_STATIC", "1")


def test_figures_are_live_alone_where_somebody_watches(monkeypatch):
    monkeypatch.delenv("RARLHF_STATIC")
    monkeypatch.setattr(go.Figure, "to_image", lambda *args, **kwargs: pytest.fail("a picture was made"))
    assert pictures.use_renderer() == pio.renderers.default == "plotly_mimetype"


def test_figures_are_live_where_no_picture_can_be_made(monkeypatch):
    def no_browser(*args, **kwargs):
        raise RuntimeError("no browser")

    monkeypatch.setattr(go.Figure, "to_image", no_browser)
    assert pictures.use_renderer() == pio.renderers.default == "plotly_mimetype"


def test_a_browser_that_never_answers_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(pictures, "PATIENCE", 0.05)
    monkeypatch.setattr(go.Figure, "to_image", lambda *args, **kwargs: threading.Event().wait())
    assert pictures.use_renderer() == "plotly_mimetype"

    stuck = pictures.PictureInTime(mime_type="image/png", b64_encode=True, format="png", width=100)
    pio.renderers.default = "plotly_mimetype+png"
    monkeypatch.setattr(pictures.PictureInTime.__base__, "to_mimebundle", lambda *args: threading.Event().wait())
    with pytest.warns(UserWarning, match="no picture within 0.05 s"):
        assert stuck.to_mimebundle({}) == {}
    assert pio.renderers.default == "plotly_mimetype"  # the next figure does not wait again


def test_what_is_made_in_time_comes_back_as_it_is():
    assert pictures.in_time(lambda: 7) == 7
    with pytest.raises(KeyError, match="gone"):
        pictures.in_time(lambda: {}["gone"])
