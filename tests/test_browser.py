"""The explorer in a real browser: JupyterLab, notebook 06, the keyboard and the mouse.

The run folder is made up, so that nothing needs training first. Beside the notebook's own live training there is one
with a fake trainer.
"""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from browser import (
    HOSTILE,
    METHODS,
    REPOSITORY,
    check_controls,
    chromium,
    episodes,
    eventually,
    first_explorer,
    free_port,
    made_up_run,
    plot,
    until,
    watched_page,
)

from rarlhf_nb.lab.explorer import risk_explorer

TOKEN = "only-for-this-test"
# On a busy page no widget starts within the two seconds that anywidget waits; here it waits for none.
BUSY = """
const timeout = AbortSignal.timeout.bind(AbortSignal);
AbortSignal.timeout = (time) => timeout(time === 2000 ? 0 : time);
"""
FAKE_TRAINING = """
import time
from types import SimpleNamespace
import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
from IPython.display import HTML, display
from rarlhf_nb.lab.plots.renderer import LIVE_ONLY, REMEDY, Remedy
from rarlhf_nb.lab.explorer import live_training
from rarlhf_nb.lab.texts import framed, text_html

display(HTML(framed("static: ", text_html(HOSTILE))))
pio.renderers[REMEDY] = Remedy()
pio.show(go.Figure(go.Scatter(y=[1, 2]), {"title": {"text": "Line beside"}}), LIVE_ONLY)

class Trainer:
    def __init__(self, alpha, seed, **setting):
        self.args, self.iteration, self.kept = SimpleNamespace(iterations=400), 0, round(8 * alpha)
    def next_prompts(self):
        return {"prompts": [HOSTILE] * 8}
    def step(self, prompts):
        time.sleep(0.1)
        self.iteration += 1
        self.rollout = SimpleNamespace(env_rewards=np.arange(8.0), kl=np.arange(8.0),
                                       prompts=prompts, completions=prompts)
        self.targets = SimpleNamespace(tail=np.arange(self.kept))

live_training(Trainer)
"""

LIVE_EXPLORER = """
import pandas as pd

conditioned = pd.concat([tables.episodes["rlhf"].assign(alpha=alpha) for alpha in (1.0, 0.4, 0.1)], ignore_index=True)

def sample(prompts, alpha):
    return [(f"{HOSTILE} fresh for {prompt} at {alpha:.2f}", alpha) for prompt in prompts]

risk_explorer(tables.episodes, alphas={"conditioned": conditioned}, sample=sample, trained=1.0, resamples=5)
"""


class Lab:
    """A JupyterLab for this test, with its own settings and token and without news."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        config = folder / "jupyter"
        (config / "config" / "labconfig").mkdir(parents=True)
        # keeps cells out of sight in the page
        whole = {"@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"}}
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
        """Whether there is an idle kernel; the page says idle even before there is one."""
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


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A watched page with notebook 06, run from top to bottom."""
    browser_path = chromium()
    folder = tmp_path_factory.mktemp("browser")
    made_up_run(folder, f"HOSTILE = {HOSTILE!r}\n{LIVE_EXPLORER}", FAKE_TRAINING)
    lab = Lab(folder)
    try:
        lab.wait()
        with watched_page(browser_path) as page:
            page.add_init_script(BUSY)
            page.goto(lab.address("/lab/tree/notebooks/06_alpha_explorer.ipynb?reset"))
            page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=60_000)
            until(lab.kernel_idle, 60)
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
            plots = "document.querySelectorAll('.rarlhf-training .js-plotly-plot')"
            page.wait_for_function(f"() => {plots}.length == 4")  # of the notebook's own training and the one below it
            yield page
    finally:
        lab.close()


def test_alphas_move_by_keyboard_and_mouse_methods_come_and_go_and_the_sliders_stay_in_sight(page):
    check_controls(page)


def test_share_gives_the_arguments_that_restore_the_view(page):
    explorer = first_explorer(page)
    explorer.get_by_role("button", name="share").click()
    arguments = explorer.locator(".link").inner_text()
    view = eval(f"dict({arguments})")
    assert view["methods"] == ["rlhf", "ra_rlhf"] and view["trained"] == 0.4 and view["ranking"] == "reward"
    risk_explorer({method: episodes(method) for method in METHODS}, resamples=5, **view)


def test_a_moved_slider_gets_fresh_completions_from_the_kernel(page):
    explorer = page.locator(".rarlhf-explorer").last
    handle, table = explorer.get_by_role("slider", name="trained α"), explorer.locator(".columns")

    def check(moved: bool) -> None:
        alphas = [head.split()[3] for head in table.get_by_text("sampled now").locator("..").all_inner_texts()]
        assert alphas == ["1.00", handle.get_attribute("aria-valuetext"), "0.10"] and (alphas[1] == "1.00") != moved
        cells = table.locator("tbody td").all_inner_texts()
        assert len(cells) == 12 and all(cells[place].endswith(f"at {alphas[place % 4 - 1]}") for place in (1, 2, 3, 10))

    handle.focus()
    for moved in (False, True):
        eventually(lambda moved=moved: check(moved))
        page.keyboard.press("ArrowLeft")


def test_live_training_grows_pauses_resumes_and_stops(page):
    training = page.locator(".rarlhf-training").last
    training.scroll_into_view_if_needed()

    def points() -> int:
        return page.evaluate(f"({plot('training', 0)}._fullData.at(-2)?.x || []).length")

    training.get_by_role("button", name="Start").click()
    until(lambda: points() >= 3, 20)
    training.get_by_role("button", name="Pause").click()
    training.get_by_role("button", name="Resume").wait_for()
    page.wait_for_timeout(400)
    paused = points()
    page.wait_for_timeout(500)
    assert points() == paused
    until(lambda: page.evaluate(f"{plot('training', 1)}._fullData.map(t => t.x.length)") == [5, 3], 20)
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


def test_a_live_figure_is_preferred_to_the_line_beside(page):
    page.locator(".jp-OutputArea .js-plotly-plot .gtitle", has_text="Line beside").wait_for()
    assert page.locator(".jp-OutputArea", has_text="plotly_get_chrome").count() == 0


def test_nothing_left_the_machine_no_error_and_no_payload_ran(page):
    assert page.evaluate("typeof window.hacked") == "undefined"
    assert "<script>hacked=1</script>" in first_explorer(page).locator(".texts").inner_text()
    assert "$x^2$" in page.locator(".jp-OutputArea .rarlhf", has_text="static: ").inner_text()  # TeX is active here
    assert page.locator(".rarlhf mjx-container").count() == 0
    assert page.strangers == []
    late = "[anywidget] Failed to initialize model."  # see BUSY
    assert [error for error in page.errors if "favicon" not in error and error != late] == []
