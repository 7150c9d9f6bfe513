"""The explorer in a real browser: JupyterLab, notebook 06, the keyboard and the mouse.

The run folder is made up, so that nothing is trained first; live training has a trainer of this file's own beside the
notebook's. Without Chromium the tests skip, but not in CI.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from rarlhf_nb.profiles import load_profile
from rarlhf_nb.report import method_name
from rarlhf_nb.risk import cvar, tail_count, var
from rarlhf_nb.runs import Run

REPOSITORY = Path(__file__).parent.parent
TOKEN = "only-for-this-test"
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
FAKE_TRAINING = """
import time
from types import SimpleNamespace
import numpy as np
from IPython.display import HTML, display
from rarlhf_nb.widgets import live_training
from rarlhf_nb.widgets.text import framed, text_html

display(HTML(framed("static: ", text_html(HOSTILE))))

class Trainer:
    def __init__(self, alpha, seed, **setting):
        self.args, self.iteration, self.kept = SimpleNamespace(iterations=400), 0, round(8 * alpha)
    def next_prompts(self):
        return {"prompts": [HOSTILE] * 8}
    def step(self, prompts):
        time.sleep(0.1)
        self.iteration += 1
        self.rollout = SimpleNamespace(env_rewards=np.arange(8.0), kl=np.arange(8.0), tail=np.arange(self.kept),
                                       episodes=SimpleNamespace(prompts=prompts, completions=prompts))

live_training(Trainer)
"""


def chromium() -> str:
    """The browser's path; without one the tests skip, in CI they fail."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        found = None
    if found is None:
        reason = "needs Chromium (apt-get install chromium) and playwright (pip install playwright)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return found


def episodes(method: str) -> pd.DataFrame:
    scores = np.random.default_rng(0).normal(size=SIZE)
    rng = np.random.default_rng(METHODS.index(method) + 1)
    completions = [f"completion {i} by {method}" if i % 4 else f"{HOSTILE} {i} by {method}" for i in range(SIZE)]
    return pd.DataFrame(
        {
            "prompt": [f"prompt {i} {HOSTILE if i % 4 == 1 else ''}" for i in range(SIZE)],
            "completion": completions,
            "prompt_score": scores,
            "reward": scores + 0.4 * METHODS.index(method) + rng.normal(size=SIZE),
            "kl": rng.random(SIZE),
            "label": 0,
            "group": "all",
            "seed": 0,
        }
    )


def made_up_run(folder: Path) -> None:
    """A run folder with evaluated methods, and notebook 06 with one more cell."""
    (folder / "notebooks").mkdir()
    notebook = nbformat.read(REPOSITORY / "notebooks" / "06_alpha_explorer.ipynb", 4)
    notebook.cells.append(nbformat.v4.new_code_cell(f"HOSTILE = {HOSTILE!r}\n{FAKE_TRAINING}"))
    nbformat.write(notebook, folder / "notebooks" / "06_alpha_explorer.ipynb")
    settings = load_profile("pocket", {}).model_dump(mode="json")
    run = Run.open("pocket-imdb", settings, 1, folder / "papermill_runs")
    for method in METHODS:
        run.write_table(f"evaluation/{method}.parquet", episodes(method))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Lab:
    """A JupyterLab of the test's own: no other settings, no news, a token."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        config = folder / "jupyter"
        (config / "config" / "labconfig").mkdir(parents=True)
        whole = {
            "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"}
        }  # cells out of sight stay in the page
        (config / "config" / "labconfig" / "default_setting_overrides.json").write_text(json.dumps(whole))
        quiet = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
        (config / "config" / "labconfig" / "page_config.json").write_text(json.dumps(quiet))
        places = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime"}
        environment = os.environ | {name: str(config / place) for name, place in places.items()}
        environment |= {"IPYTHONDIR": str(config / "ipython"), "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        environment.pop("RARLHF_STATIC", None)
        options = [
            "--no-browser",
            "--ip=127.0.0.1",
            f"--port={self.port}",
            "--ServerApp.port_retries=0",
            "--allow-root",
        ]
        options += [f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}"]
        self.log = (folder / "server.log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], env=environment, stdout=self.log, stderr=subprocess.STDOUT
        )

    def address(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}{'&' if '?' in path else '?'}token={TOKEN}"

    def api(self, path: str):
        with urllib.request.urlopen(self.address(path), timeout=5) as answer:
            return json.load(answer)

    def wait(self) -> None:
        until(self._answers, 60)

    def _answers(self) -> bool:
        try:
            return bool(self.api("/api/status"))
        except (urllib.error.URLError, OSError):
            return False

    def kernel_idle(self) -> bool:
        """Really idle: the page says so before there is a kernel."""
        kernels = [session["kernel"] for session in self.api("/api/sessions") if session["kernel"]]
        return bool(kernels) and kernels[0]["execution_state"] == "idle" and kernels[0]["connections"] >= 1

    def close(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def until(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{condition} did not come true in {seconds} s"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Notebook 06, run from top to bottom; on the page `errors` and `strangers`, requests that left the machine."""
    browser_path = chromium()
    from playwright.sync_api import sync_playwright

    folder = tmp_path_factory.mktemp("browser")
    made_up_run(folder)
    lab = Lab(folder)
    try:
        lab.wait()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
            page = browser.new_page(viewport={"width": 1280, "height": 1000})
            page.set_default_timeout(30_000)
            page.errors, page.strangers = [], []
            page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: page.errors.append(str(error)))
            page.on("request", lambda request: None if LOCAL.match(request.url) else page.strangers.append(request.url))
            page.goto(lab.address("/lab/tree/notebooks/06_alpha_explorer.ipynb?reset"))
            page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=60_000)
            until(lab.kernel_idle, 60)
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
            until(lambda: "Start" in "".join(page.locator(".jp-OutputArea button").all_text_contents()), 60)
            yield page
            browser.close()
    finally:
        lab.close()


def plot(widget: str, place: int) -> str:
    """JavaScript for a figure of the last such widget on the page."""
    return (
        f"[...[...document.querySelectorAll('.rarlhf-{widget}')].at(-1).querySelectorAll('.js-plotly-plot')][{place}]"
    )


def slider(page, name: str):
    """The box of a slider by its description."""
    return page.locator(".widget-slider", has=page.locator(f".widget-label:text-is('{name}')")).first


def eventually(check, seconds: float = 20) -> None:
    """The last of a move's messages may still be on its way: check again until then."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return check()
        except AssertionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def check_explorer(page, alpha: float, swept: str) -> None:
    """Figures, table and texts come to hold the library's numbers at alpha."""
    eventually(lambda: explorer_holds(page, alpha, swept))


def explorer_holds(page, alpha: float, swept: str) -> None:
    shown = ("sft", "rlhf", swept)
    tables = {method: episodes(method) for method in shown}
    expected = [var(tables[method]["reward"], alpha) for method in shown]
    script = f"(wanted) => wanted.every((v, i) => Math.abs({plot('explorer', 0)}.data[7 * i + 2].x[0] - v) < 1e-9)"
    page.wait_for_function(script, arg=expected)
    panels = page.locator(".rarlhf-explorer .js-plotly-plot").first.locator(".annotation-text").all_text_contents()
    cells = page.locator(".rarlhf-explorer .rarlhf table").first.locator("tr").all_text_contents()
    for place, method in enumerate(shown):
        mean = cvar(tables[method]["reward"], alpha)
        assert method_name(method) in panels[place] and f"CVaR {mean:.2f}" in panels[place]
        assert f"{method_name(method)}{mean:.2f} [" in cells[place + 1]
    lowest = tables["rlhf"].sort_values("reward", kind="stable").head(tail_count(alpha, SIZE))
    texts = page.locator(".rarlhf-explorer .rarlhf table").nth(1).inner_text()
    for row in (0, -1):
        assert f"{lowest.index[row]} by rlhf" in texts
    assert f"of the {len(lowest)} episodes" in page.locator(".rarlhf-explorer .rarlhf").nth(1).inner_text()


def measured_alpha(page) -> float:
    """What the slider says once it has come to rest."""
    readout = slider(page, "measured α").locator(".widget-readout")
    before, now = None, readout.inner_text()
    while before != now:
        page.wait_for_timeout(300)
        before, now = now, readout.inner_text()
    return float(now)


def test_alpha_moves_by_keyboard_and_by_mouse(page):
    page.locator(".rarlhf-explorer").scroll_into_view_if_needed()
    page.wait_for_function(f"() => document.querySelector('.rarlhf-explorer') && {plot('explorer', 2)}?.data")
    page.wait_for_selector(".widget-slider .noUi-handle")
    check_explorer(page, 0.1, "ra_rlhf@0.1")
    handle = slider(page, "measured α").locator(".noUi-handle")
    handle.scroll_into_view_if_needed()
    handle.focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("() => document.querySelector('.widget-slider .widget-readout').textContent == '0.20'")
    check_explorer(page, 0.2, "ra_rlhf@0.1")
    at, rail = handle.bounding_box(), slider(page, "measured α").locator(".noUi-target").bounding_box()
    page.mouse.move(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
    page.mouse.down()
    page.mouse.move(rail["x"] + 0.6 * rail["width"], rail["y"] + rail["height"] / 2, steps=6)
    page.mouse.up()
    alpha = measured_alpha(page)
    assert 0.5 < alpha < 0.7
    check_explorer(page, alpha, "ra_rlhf@0.1")


def test_the_trained_alpha_changes(page):
    handle = slider(page, "trained α").locator(".noUi-handle")
    handle.focus()
    page.keyboard.press("ArrowRight")
    check_explorer(page, measured_alpha(page), "ra_rlhf@0.4")
    until(lambda: page.evaluate(f"Array.from({plot('explorer', 2)}.data[0].marker.size)") == [7, 15], 20)


def test_live_training_grows_pauses_resumes_and_stops(page):
    training = page.locator(".rarlhf-training").last
    training.scroll_into_view_if_needed()

    def points() -> int:
        return page.evaluate(f"({plot('training', 0)}.data.at(-2)?.x || []).length")

    training.get_by_role("button", name="Start").click()
    until(lambda: points() >= 3, 20)
    training.get_by_role("button", name="Pause").click()
    training.get_by_role("button", name="Resume").wait_for()
    page.wait_for_timeout(400)
    paused = points()
    page.wait_for_timeout(500)
    assert points() == paused
    until(lambda: page.evaluate(f"{plot('training', 1)}.data.map(t => t.x.length)") == [5, 3], 20)
    training.get_by_role("button", name="Resume").click()
    until(lambda: points() > paused + 2, 20)
    training.get_by_role("button", name="Stop").click()
    training.get_by_text(re.compile("^Stopped")).wait_for()
    until(training.get_by_role("button", name="Start").is_enabled, 20)  # the text may come before the button
    before = page.evaluate(f"{plot('training', 0)}.data.length")
    training.get_by_role("button", name="Start").click()
    page.wait_for_function(f"() => {plot('training', 0)}.data.length == {before + 2}")
    training.get_by_role("button", name="Stop").click()
    page.mouse.move(0, 0)


def test_a_failure_of_the_notebooks_own_training_is_shown(page):
    own = page.locator(".rarlhf-training").first
    own.scroll_into_view_if_needed()
    own.get_by_role("button", name="Start").click()
    own.get_by_text("run notebook 01_data_prep first").or_(
        own.get_by_text("run notebook 02_baseline_rlhf first")
    ).wait_for()


def test_nothing_left_the_machine_no_error_and_no_payload_ran(page):
    assert page.evaluate("typeof window.hacked") == "undefined"
    assert "<script>hacked=1</script>" in page.locator(".rarlhf-explorer .rarlhf table").nth(1).inner_text()
    assert "$x^2$" in page.locator(".jp-OutputArea .rarlhf", has_text="static: ").inner_text()  # where TeX is at work
    assert page.locator(".rarlhf mjx-container").count() == 0
    assert page.strangers == []
    assert [error for error in page.errors if "favicon" not in error] == []


def test_screenshots(page):
    """For looking at, where a folder is named."""
    folder = os.environ.get("RARLHF_SCREENSHOTS") or pytest.skip("RARLHF_SCREENSHOTS names no folder")
    page.keyboard.press("Control+b")  # without the sidebar
    for width in (1280, 800):
        page.set_viewport_size({"width": width, "height": 2600})
        page.wait_for_timeout(2000)
        for name in ("explorer", "schedule", "training"):
            page.locator(f".rarlhf-{name}").last.scroll_into_view_if_needed()
            page.locator(f".rarlhf-{name}").last.screenshot(path=f"{folder}/{name}-{width}.png")
