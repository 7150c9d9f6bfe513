"""Beside a figure: a picture where one can be made in time, otherwise a text."""

import asyncio
import base64
import html
import struct
import threading
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import pytest
from browser import chromium
from nbconvert import HTMLExporter
from plotly.subplots import make_subplots

from rarlhf_nb.lab.explorer.explorer_figures import distribution_figure, shared_axes
from rarlhf_nb.lab.explorer.tails import Slot, measure_tails
from rarlhf_nb.lab.plots import pictures
from rarlhf_nb.lab.plots.figure_text import figure_text
from rarlhf_nb.lab.plots.figures import quantile_curves


@pytest.fixture(autouse=True)
def renderers(monkeypatch):
    monkeypatch.setattr(pio.renderers, "default", pio.renderers.default)
    monkeypatch.setenv("RARLHF_STATIC", "1")
    pictures.the_browser.cache_clear()


def test_figures_are_live_alone_where_somebody_watches(monkeypatch):
    monkeypatch.delenv("RARLHF_STATIC")
    monkeypatch.setattr(pictures, "the_browser", lambda: pytest.fail("a browser was started"))
    assert pictures.use_renderer() == pio.renderers.default == "plotly_mimetype"


@pytest.mark.parametrize("browser", ["no/such/file", "/bin/false"])
def test_figures_have_a_text_where_no_browser_starts(browser, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", browser)
    assert pictures.use_renderer() == pio.renderers.default == "plotly_mimetype+figure_text"


def test_a_browser_that_never_answers_is_not_waited_for(tmp_path, monkeypatch):
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nexec sleep 5\n")
    silent.chmod(0o755)
    monkeypatch.setenv("BROWSER_PATH", str(silent))
    monkeypatch.setattr(pictures, "PATIENCE", 0.5)
    assert pictures.use_renderer() == "plotly_mimetype+figure_text"


class Stuck(pictures.Browser):
    """A browser that has started, and draws nothing."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.kaleido = SimpleNamespace(calc_fig=lambda figure, opts: asyncio.sleep(60))
        threading.Thread(target=self.loop.run_forever, daemon=True).start()


def test_after_a_late_picture_figures_come_with_a_text(monkeypatch):
    monkeypatch.setattr(pictures, "PATIENCE", 0.05)
    pio.renderers.default = "plotly_mimetype+png"
    with pytest.warns(UserWarning, match="no picture within 0.05 s"):
        bundle = pictures.Picture(Stuck()).to_mimebundle(go.Figure(go.Scatter(y=[1.5], name="RLHF")).to_dict())
    assert set(bundle) == {"text/plain"}
    assert pio.renderers.default == "plotly_mimetype+figure_text"  # the next figure does not wait again


def test_one_browser_draws_every_picture(pictures_of_figures):
    chromium()
    assert pictures.use_renderer() == "plotly_mimetype+png_in_time"
    browser = pictures.the_browser()
    figure = go.Figure(go.Scatter(y=[1.5, 2.5], name="RLHF")).update_layout(height=320)
    for _ in range(2):
        bundle = pio.renderers["png_in_time"].to_mimebundle(figure.to_dict())
        drawn = base64.b64decode(bundle["image/png"])
        assert drawn[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">II", drawn[16:24]) == (900, 320)
    assert pictures.use_renderer() and pictures.the_browser() is browser
    browser.close()


def test_without_a_browser_an_exported_notebook_shows_a_text_in_place_of_the_figure(monkeypatch):
    pictures.use_renderer()
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown.append(bundle))
    hostile = "<script>alert(1)</script>"
    table = pd.DataFrame(
        {"reward": [1.0, 3.0], "prompt_score": [0.0, 1.0], "prompt": ["a", "b"], "seed": 0, "label": 1, "group": "all"}
    )
    curve_figure = quantile_curves({"rlhf": table, hostile: table}, resamples=5)
    curve_figure.show()
    (bundle,) = shown
    assert {"application/vnd.plotly.v1+json", "text/plain"} == set(bundle)
    assert bundle["text/plain"].splitlines() == [
        "Reward on the hardest prompts",
        "x: hardest share of prompts (%)",
        "y: mean reward (logit)",
        "",
        "first → last               the hardest   all prompts",
        "                           fifth",
        "RLHF                       1 → 1         1 → 2",
        "<script>alert(1)</script>  1 → 1         1 → 2",
        "",
        "Open this notebook in JupyterLab to see the figure, or install Chromium and run again for a picture.",
    ]

    cell = nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("display_data", data=bundle)])
    page, _ = HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    assert "RLHF                       1 → 1         1 → 2" in page
    assert hostile not in page and html.escape(hostile) in page


def table_of(figure):
    return figure_text(figure.to_dict()).split("\n\n")[1].splitlines()


def test_a_point_is_shown_with_its_interval_and_bars_with_their_median():
    figure = make_subplots(cols=2, subplot_titles=["CVaR 10 %<br>of reward", "counts"])
    error = {"array": [0.25], "arrayminus": [0.5]}
    figure.add_scatter(x=[1.5], y=["RA-RLHF &lt;RU&gt;"], error_x=error, row=1, col=1)
    figure.add_scatter(x=[1.0, 2.0], y=["RA-RLHF &lt;RU&gt;"] * 2, mode="markers", row=1, col=1)  # its seeds
    figure.add_bar(x=np.arange(3.0), y=np.array([1, 2, 4]), name="positive text", row=1, col=2)
    figure.add_scatter(x=[0, 1], y=[0, 1], hoverinfo="skip", name="a band", row=1, col=2)
    assert table_of(figure) == [
        "value [interval];   CVaR 10 % of       counts",
        "count, median       reward",
        "positive text                          7, 2",
        "RA-RLHF <RU>        1.50 [1.00, 1.75]",
    ]


def test_many_panels_become_rows_and_few_points_are_listed():
    titles = ["tail", "mean", "KL"]
    figure = make_subplots(cols=3, subplot_titles=titles)
    for col in (1, 2, 3):
        figure.add_scatter(x=[0.1, 0.4], y=[-0.051, col], name="RLHF", mode="lines+markers", row=1, col=col)
        figure.add_scatter(x=[0.2, 0.3], y=[9, 9], name="RLHF", mode="markers", row=1, col=col)
    last = ("tail", "1"), ("mean", "2"), ("KL", "3")
    assert table_of(figure) == [
        "x: y                RLHF",
        *(f"{title:<18}  0.1: -0.051, 0.4: {value}" for title, value in last),
    ]


def test_a_wide_table_goes_on_below():
    names = [f"method_{number}" for number in range(1, 7)]
    figure = make_subplots(cols=7, subplot_titles=list("abcdefg"))
    for col in range(1, 8):
        for name in names:
            figure.add_scatter(y=np.arange(5), name=name, row=1, col=col)
    text = figure_text(figure.to_dict())
    headings = [line.split()[3:] for line in text.splitlines() if line.startswith("first → last")]
    assert headings == [names[:5], names[5:]]
    assert max(map(len, text.splitlines())) <= 100 and text.count("0 → 4") == 42


def test_a_row_of_panels_shares_its_title():
    table = pd.DataFrame({"prompt": ["a", "b"], "prompt_score": [0.0, 1.0], "reward": [-1.0, 2.0], "seed": 0})
    table = table.assign(completion="x", label=0, group="all")
    methods = ("base", "sft", "quark", "rlhf")
    shifted = {method: table.assign(reward=table["reward"] + shift) for shift, method in enumerate(methods)}
    measured = measure_tails(shifted, resamples=5)
    slots = [Slot(method, tails, method) for method, tails in measured.items()]
    figure = distribution_figure(slots, 0.5, "reward", shared_axes(list(measured.values())))
    rows = [line.split("  ")[0] for line in table_of(figure)]
    assert rows[-4:] == [
        "Base VaR -1.00, CVaR -1.00",
        "SFT VaR 0.00, CVaR 0.00",
        "Quark VaR 1.00, CVaR 1.00",
        "RLHF VaR 2.00, CVaR 2.00",
    ]


def test_a_text_stays_short_and_any_figure_has_one():
    many = go.Figure([go.Scatter(y=np.arange(9.0), name=f"method {number}\u202e") for number in range(200)])
    text = figure_text(many.to_dict())
    assert len(text) <= 2000 and "more lines\n" in text and "\u202e" not in text
    dates = go.Scatter(x=["2026-01-01", "2026-01-02"], y=[1, None], name="dated")
    for trace in (dates, go.Heatmap(z=[[1]], x=["a"], y=["b"]), go.Pie(values=[1]), go.Bar(x=["a"], y=[1], name="bar")):
        assert figure_text(go.Figure(trace).to_dict()).startswith("Figure\n")
    assert figure_text(go.Figure().to_dict()).startswith("Figure\n")
