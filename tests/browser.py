"""Shared by the browser tests: a made-up run with hostile texts, a watched page, and checks of the explorer.

Without Chromium the tests are skipped or, in CI, fail.
"""

import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from made_up import made_up_episodes

from rarlhf_nb.lab.methods import method_name
from rarlhf_nb.lab.profiles import load_profile
from rarlhf_nb.lab.runs import Run
from rarlhf_nb.risk import cvar, tail_count, var

REPOSITORY = Path(__file__).parent.parent
LOCAL = re.compile(r"(https?|wss?)://127\.0\.0\.1[:/]|data:|blob:|about:")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZE = 80
METHODS = ("sft", "rlhf", "ra_rlhf@0.4", "ra_rlhf@0.1")
HOSTILE = "<script>hacked=1</script><img src=x onerror='window.hacked=1'></div></td> $x^2$ \x07 \u202e **b** <i>i</i>"


def chromium() -> str:
    """The path of the browser; without a browser, skips the test or, in CI, fails it."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        found = None
    if found is None:
        reason = "needs Chromium (apt-get install chromium) and playwright (pip install playwright)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return found


@contextmanager
def watched_page(path: str, **options) -> Iterator:
    """A page of the browser at `path`; it records its `errors`, and as `strangers` the requests to other machines."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 1000}, **options)
        page.set_default_timeout(60_000)
        page.errors, page.strangers = [], []
        page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("request", lambda request: None if LOCAL.match(request.url) else page.strangers.append(request.url))
        yield page
        browser.close()


def made_up_run(folder: Path, *cells: str) -> Run:
    """A run with evaluated methods in papermill_runs/, and notebook 06 with `cells` at its end."""
    (folder / "notebooks").mkdir()
    notebook = nbformat.read(REPOSITORY / "notebooks" / "06_alpha_explorer.ipynb", 4)
    notebook.cells += map(nbformat.v4.new_code_cell, cells)
    nbformat.write(notebook, folder / "notebooks" / "06_alpha_explorer.ipynb")
    settings = load_profile("pocket", {}).model_dump(mode="json")
    run = Run.open("pocket-imdb", settings, 1, folder / "papermill_runs")
    for method in METHODS:
        run.write(f"evaluation/{method}.parquet", episodes(method))
    return run


def episodes(method: str) -> pd.DataFrame:
    scores, place = np.random.default_rng(0).normal(size=SIZE), METHODS.index(method)
    rng = np.random.default_rng(place + 1)
    return made_up_episodes(
        scores + 0.4 * place + rng.normal(size=SIZE),
        prompt=[f"prompt {i} {HOSTILE if i % 4 == 1 else ''}" for i in range(SIZE)],
        completion=[f"{'completion' if i % 4 else HOSTILE} {i} by {method}" for i in range(SIZE)],
        prompt_score=scores,
        kl=rng.random(SIZE),
    )


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def until(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{condition} did not come true in {seconds} s"
        time.sleep(0.2)


def eventually(check, seconds: float = 20) -> None:
    """Repeat `check` until it passes, since the last message of a move may still be on its way."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return check()
        except AssertionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def plot(widget: str, place: int) -> str:
    """JavaScript for a figure of the first explorer, or of the last widget of another kind, on the page."""
    which = 0 if widget == "explorer" else -1
    found = f"[...document.querySelectorAll('.rarlhf-{widget}')].at({which})"
    return f"[...{found}.querySelectorAll('.js-plotly-plot')][{place}]"


def first_explorer(page):
    """The first explorer of the page, which in a notebook is its own."""
    return page.locator(".rarlhf-explorer").first


def slider(page, name: str):
    """The slider with this name."""
    return first_explorer(page).get_by_role("slider", name=name)


def check_explorer(page, alpha: float, swept: str) -> None:
    """Wait until figures, numbers and texts hold the library's numbers at alpha."""
    eventually(lambda: explorer_holds(page, alpha, swept))


def explorer_holds(page, alpha: float, swept: str) -> None:
    shown = ("rlhf", swept)
    tables = {method: episodes(method) for method in shown}
    found = page.evaluate(f"{plot('explorer', 0)}.data.slice(4, 6).map((trace) => trace.x[0])")
    assert found == pytest.approx([var(tables[method]["reward"], alpha) for method in shown], abs=1e-4)
    dots = page.evaluate(f"{plot('explorer', 1)}.data.slice(4, 6).map((trace) => trace.y[0])")
    means = [cvar(tables[method]["reward"], alpha) for method in shown]
    assert dots == pytest.approx(means, abs=1e-4)
    rows = first_explorer(page).locator(".numbers tbody tr").all_inner_texts()
    rows = [" ".join(row.split()) for row in rows]
    for row, method, mean in zip(rows, shown, means, strict=True):
        assert method_name(method) in row and f"{mean:.2f} [".replace("-", "−") in row
    lowest = tables["rlhf"].sort_values("reward", kind="stable").head(tail_count(alpha, SIZE))
    texts = first_explorer(page).locator(".texts").inner_text()
    for row in (0, -1):
        assert f"{lowest.index[row]} by rlhf" in texts
    assert f"of the {len(lowest)} episodes" in first_explorer(page).inner_text()


def check_controls(page) -> None:
    """Every control moves what it should."""
    check_measured_alpha(page)
    check_trained_alpha(page)
    check_methods(page)
    check_in_sight(page)


def check_measured_alpha(page) -> None:
    """Move from 0.1 to 0.2 by keyboard and further by mouse; the explorer follows."""
    first_explorer(page).scroll_into_view_if_needed()
    page.wait_for_function(f"() => document.querySelector('.rarlhf-explorer') && {plot('explorer', 2)}?.data")
    check_explorer(page, 0.1, "ra_rlhf@0.1")
    handle = slider(page, "measured α")
    handle.focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    check_explorer(page, 0.2, "ra_rlhf@0.1")
    rail = handle.bounding_box()
    page.mouse.move(rail["x"] + 0.2 * rail["width"], rail["y"] + rail["height"] / 2)
    page.mouse.down()
    page.mouse.move(rail["x"] + 0.6 * rail["width"], rail["y"] + rail["height"] / 2, steps=6)
    page.mouse.up()
    alpha = int(handle.input_value()) / 100
    assert 0.5 < alpha < 0.7
    check_explorer(page, alpha, "ra_rlhf@0.1")


def check_trained_alpha(page) -> None:
    """Move from 0.1 to 0.4 by keyboard; the explorer shows and marks the other member of the sweep."""
    alpha = int(slider(page, "measured α").input_value()) / 100
    slider(page, "trained α").focus()
    page.keyboard.press("ArrowRight")
    check_explorer(page, alpha, "ra_rlhf@0.4")
    upright = f"{plot('explorer', 2)}.layout.shapes.filter((shape) => shape.x0 === shape.x1)"
    until(lambda: set(page.evaluate(f"{upright}.map((shape) => shape.x0)")) == {0.4}, 20)


def check_methods(page) -> None:
    """Add a method by its chip and take it away again, and put the distributions below each other and back."""
    explorer = first_explorer(page)
    rows = explorer.locator(".numbers tbody tr")
    for count in (3, 2):
        explorer.get_by_role("button", name="SFT").click()
        assert rows.count() == count
    for layers in (2, 1):
        explorer.get_by_role("button", name="stacked").click()
        assert explorer.locator(".distributions .js-plotly-plot").count() == layers


def check_in_sight(page) -> None:
    """The sliders stay in sight while the page scrolls to the last figure of the explorer."""
    first_explorer(page).locator(".js-plotly-plot").last.scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    at = slider(page, "measured α").bounding_box()
    assert 0 <= at["y"] < 300 and at["y"] + at["height"] < page.viewport_size["height"]
