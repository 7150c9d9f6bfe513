"""Beside a figure: a picture where one can be made in time, otherwise a text."""

import html
import threading

import nbformat
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import pytest
from nbconvert import HTMLExporter
from plotly.subplots import make_subplots

from rarlhf_nb.showing import pictures
from rarlhf_nb.showing.figure_text import figure_text
from rarlhf_nb.showing.figures import quantile_curves


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
    assert pictures.use_renderer() == pio.renderers.default == "plotly_mimetype+figure_text"


def test_a_browser_that_never_answers_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(pictures, "PATIENCE", 0.05)
    monkeypatch.setattr(go.Figure, "to_image", lambda *args, **kwargs: threading.Event().wait())
    assert pictures.use_renderer() == "plotly_mimetype+figure_text"

    stuck = pictures.PictureInTime(mime_type="image/png", b64_encode=True, format="png", width=100)
    pio.renderers.default = "plotly_mimetype+png"
    monkeypatch.setattr(pictures.PictureInTime.__base__, "to_mimebundle", lambda *args: threading.Event().wait())
    with pytest.warns(UserWarning, match="no picture within 0.05 s"):
        bundle = stuck.to_mimebundle(go.Figure(go.Scatter(y=[1.5], name="RLHF")).to_dict())
    assert set(bundle) == {"text/plain"}
    assert pio.renderers.default == "plotly_mimetype+figure_text"  # the next figure does not wait again


def test_what_is_made_in_time_comes_back_as_it_is():
    assert pictures.in_time(lambda: 7) == 7
    with pytest.raises(KeyError, match="gone"):
        pictures.in_time(lambda: {}["gone"])


def test_without_a_browser_an_exported_notebook_shows_a_text_in_place_of_the_figure(monkeypatch):
    monkeypatch.setattr(go.Figure, "to_image", lambda *args, **kwargs: 1 / 0)
    pictures.use_renderer()
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown.append(bundle))
    hostile = "<script>alert(1)</script>"
    table = pd.DataFrame(
        {"reward": [1.0, 3.0], "prompt_score": [0.0, 1.0], "prompt": ["a", "b"], "seed": 0, "label": 1, "group": "all"}
    )
    curve_figure = quantile_curves({"rlhf": table, hostile: table})
    curve_figure.show()
    (bundle,) = shown
    assert {"application/vnd.plotly.v1+json", "text/plain"} == set(bundle)
    text = bundle["text/plain"]
    assert text.startswith("Reward on the hardest prompts\nx: hardest share of prompts (%)\ny: mean reward (logit)\n")
    assert "all prompts\n  RLHF: 100 points, 1 at first, 2 at last, between 1 and 2\n" in text
    assert text.endswith("install Chromium and run again for a picture.") and len(text) < 2000

    cell = nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("display_data", data=bundle)])
    page, _ = HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    assert "RLHF: 100 points, 1 at first" in page and hostile not in page and html.escape(hostile) in page


def test_a_point_is_shown_with_its_interval_and_bars_with_their_total():
    figure = make_subplots(cols=2, subplot_titles=["CVaR 10 %<br>of reward", "counts"])
    error = {"array": [0.25], "arrayminus": [0.5]}
    figure.add_scatter(x=[1.5], y=["RA-RLHF &lt;RU&gt;"], error_x=error, row=1, col=1)
    figure.add_bar(x=np.arange(3.0), y=np.array([1, 2, 4]), name="positive text", row=1, col=2)
    figure.add_scatter(x=[0, 1], y=[0, 1], hoverinfo="skip", name="a band", row=1, col=2)
    assert figure_text(figure.to_dict()).splitlines()[1:-1] == [
        "CVaR 10 % of reward",
        "  RA-RLHF <RU>: 1.50 [1.00, 1.75]",
        "counts",
        "  positive text: 7 in 3 bars",
    ]
