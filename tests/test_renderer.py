"""Beside a figure: a picture if one can be made in time, otherwise a line that says how to see it."""

import asyncio
import base64
import struct
import threading
from types import SimpleNamespace

import nbformat
import plotly.graph_objects as go
import plotly.io as pio
import pytest
from browser import chromium
from nbconvert import HTMLExporter

from rarlhf_nb.lab.plots import renderer

FIGURE = go.Figure(go.Scatter(y=[1.5, 2.5], name="RLHF")).update_layout(height=320)


@pytest.fixture(autouse=True)
def renderers(monkeypatch):
    monkeypatch.setattr(pio.renderers, "default", pio.renderers.default)
    monkeypatch.setenv("RARLHF_STATIC", "1")
    renderer.the_pictures.cache_clear()


def test_figures_are_live_alone_if_somebody_watches(monkeypatch):
    monkeypatch.delenv("RARLHF_STATIC")
    monkeypatch.setattr(renderer, "the_pictures", lambda: pytest.fail("a browser was started"))
    assert renderer.use_renderer() == pio.renderers.default == "plotly_mimetype"


@pytest.mark.parametrize("browser", ["no/such/file", "/bin/false"])
def test_an_exported_notebook_says_how_to_see_a_figure_if_no_browser_starts(browser, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", browser)
    assert renderer.use_renderer() == pio.renderers.default == "plotly_mimetype+remedy"
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown.append(bundle))
    FIGURE.show()
    (bundle,) = shown
    assert {"application/vnd.plotly.v1+json", "text/plain"} == set(bundle)
    cell = nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("display_data", data=bundle)])
    page, _ = HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    assert "plotly_get_chrome" in page


def test_a_browser_that_never_answers_is_not_waited_for(tmp_path, monkeypatch):
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nexec sleep 5\n")
    silent.chmod(0o755)
    monkeypatch.setenv("BROWSER_PATH", str(silent))
    monkeypatch.setattr(renderer, "TIMEOUT", 0.5)
    assert renderer.use_renderer() == "plotly_mimetype+remedy"


class Stuck(renderer.Pictures):
    """A browser that has started, and draws nothing."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.kaleido = SimpleNamespace(calc_fig=lambda figure, opts: asyncio.sleep(60))
        threading.Thread(target=self.loop.run_forever, daemon=True).start()


def test_after_a_late_picture_figures_come_without_one(monkeypatch):
    monkeypatch.setattr(renderer, "TIMEOUT", 0.05)
    pio.renderers.default = "plotly_mimetype+png"
    with pytest.warns(UserWarning, match="no picture within 0.05 s"):
        bundle = Stuck().to_mimebundle(FIGURE.to_dict())
    assert set(bundle) == {"text/plain"}
    assert pio.renderers.default == "plotly_mimetype+remedy"  # the next figure does not wait again


def test_one_browser_draws_every_picture(pictures_of_figures):
    chromium()
    assert renderer.use_renderer() == "plotly_mimetype+picture"
    for _ in range(2):
        bundle = pio.renderers["picture"].to_mimebundle(FIGURE.to_dict())
        drawn = base64.b64decode(bundle["image/png"])
        assert drawn[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">II", drawn[16:24]) == (900, 320)
    pictures = renderer.the_pictures()
    assert renderer.use_renderer() and renderer.the_pictures() is pictures
    pictures.close()
