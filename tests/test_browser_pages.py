"""Pages in a real browser: report.html opened from disk, offline, and the page that `rarlhf explore` serves."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pandas as pd
import psutil
import pytest
from browser import (
    HOSTILE,
    REPOSITORY,
    check_controls,
    chromium,
    episodes,
    free_port,
    made_up_run,
    slider,
    until,
    watched_page,
)
from typer.testing import CliRunner

from rarlhf_nb.lab.cli import app
from rarlhf_nb.lab.explorer.page import explorer_page
from rarlhf_nb.lab.texts import visible

RARLHF = [sys.executable, "-m", "rarlhf_nb.lab.cli"]
SHOWN = "<script>hacked=1</script><img src=x onerror='window.hacked=1'></div></td> $x^2$"


def settings(folder):
    """The environment of a command: it ignores the user's Jupyter settings, and is static as in a batch run."""
    places = {name: str(folder / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")}
    return os.environ | places | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "RARLHF_STATIC": "1"}


def log(method):
    """A training log with the mean rewards of `method`, ten episodes per iteration."""
    means = episodes(method)["reward"].groupby(lambda row: row // 10).mean()
    return "".join(json.dumps({"iteration": i + 1, "mean_reward": mean}) + "\n" for i, mean in enumerate(means))


# These two come first: only one playwright event loop can run at a time, and the one of `served` runs to the end.
def test_the_report_opens_from_the_disk_offline(tmp_path, monkeypatch):
    path = chromium()
    run = made_up_run(tmp_path)
    run.path("training").mkdir()
    run.path("training", "rlhf.jsonl").write_text(log("rlhf"))
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["report", "pocket-imdb"]).exit_code == 0
    file = run.path("report.html")
    with watched_page(path, offline=True) as page:
        page.goto(file.as_uri())
        until(lambda: page.locator(".js-plotly-plot .main-svg").count() > 0, 60)
        figures = file.read_text().count("Plotly.newPlot(")
        until(lambda: page.locator(".js-plotly-plot:has(.main-svg)").count() == figures, 60)
        assert figures >= 5
        curves = page.locator(".js-plotly-plot").nth(1)
        curves.scroll_into_view_if_needed()
        curves.locator(".nsewdrag").first.hover()
        curves.locator(".hoverlayer .hovertext").first.wait_for()
        assert "has the best tail" in page.locator(".finding").inner_text()
        heights = (
            page.locator("table.dataframe")
            .first.locator("tbody tr")
            .evaluate_all("rows => rows.map(row => row.offsetHeight)")
        )
        assert len(heights) == 4 and max(heights) < 40  # pixels: every cell of the main table on one line
        text = page.locator("body").inner_text()
        hardest = episodes("sft").sort_values("prompt_score").head(8)
        for column in ("prompt", "completion"):
            assert any(SHOWN in cell for cell in hardest[column])
            assert all(" ".join(visible(cell).split()) in " ".join(text.split()) for cell in hardest[column])
        assert page.evaluate("typeof window.hacked") == "undefined"
        assert page.locator("img[src=x]").count() == 0
        assert page.strangers == [file.as_uri()]
        assert page.errors == []


def test_a_conditioned_policy_moves_with_its_slider(tmp_path):
    path, run = chromium(), made_up_run(tmp_path)
    alphas = {
        alpha: episodes("rlhf").assign(alpha=alpha, completion=f"{HOSTILE} {'and on ' * 40}at {alpha}")
        for alpha in (1.0, 0.4, 0.1)
    }
    table = pd.concat([rows.assign(reward=rows["reward"] + 1 - alpha) for alpha, rows in alphas.items()])
    run.write("evaluation/conditioned.alphas.parquet", table.reset_index(drop=True))
    file = tmp_path / "page.html"
    file.write_text(explorer_page(run, "once"))
    with watched_page(path) as page:
        page.goto(f"{file.as_uri()}#alpha=1&trained=1&methods=rlhf,conditioned")
        mean = page.locator(".numbers tbody tr").last.locator("b").first
        columns = page.locator(".columns td")
        mean.wait_for()
        first, rlhf = float(mean.inner_text().replace("−", "-")), episodes("rlhf")["reward"].mean()
        assert first == pytest.approx(rlhf, abs=0.006)
        for column in range(1, 4):
            columns.nth(column).locator("summary").click()
        assert [text.split()[-2:] for text in columns.all_inner_texts()[1:4]] == [
            ["at", at] for at in ("1.0", "1.0", "0.1")
        ]
        page.wait_for_timeout(300)  # the taller page redraws nothing
        assert page.locator(".columns details[open]").count() == 3
        moved = [first]
        slider(page, "trained α").focus()
        for _ in range(12):
            page.keyboard.press("ArrowLeft")
            moved.append(float(mean.inner_text().replace("−", "-")))
        assert moved == sorted(moved) and moved[-1] > first + 0.2 and len(set(moved)) > 8
        columns.nth(2).locator("summary").click()
        assert columns.nth(2).inner_text().endswith("at 0.4")
        swatches = page.locator(".chips [aria-pressed=true] .swatch, .numbers tbody .swatch")
        colors = swatches.evaluate_all("marks => marks.map(mark => getComputedStyle(mark).backgroundColor)")
        assert colors[:2] == colors[2:] and len(set(colors)) == 2  # the chips are the legend
        page.get_by_role("button", name="play").click()
        until(lambda: slider(page, "trained α").input_value() == "0", 30)
        assert float(mean.inner_text()) == pytest.approx(rlhf + 0.9, abs=0.006)
        columns.nth(2).locator("summary").click()
        assert "trained=0.1" in page.url and columns.nth(2).inner_text().endswith("at 0.1")
        texts = page.locator(".texts article").first
        assert [name.inner_text() for name in texts.locator("p:not(.prompt) small").all()] == [
            "RLHF",
            "Conditioned α 0.1",
        ]
        stacked = page.get_by_role("button", name="stacked")
        for address, pressed in (("alpha=0.2&stacked=true", "true"), ("alpha=0.3", "false")):
            page.evaluate(f"location.hash = '#{address}'")
            until(lambda pressed=pressed: stacked.get_attribute("aria-pressed") == pressed, 10)
        assert page.evaluate("typeof window.hacked") == "undefined" and page.locator("img").count() == 0
        assert page.errors == []


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The page of `rarlhf explore` with `server`, `address`, `output` and `run`; `before` holds the run's files."""
    path = chromium()
    folder = tmp_path_factory.mktemp("explore")
    run = made_up_run(folder)
    before, port, output = contents(run.folder), free_port(), folder / "output.txt"
    with output.open("w") as file:
        server = subprocess.Popen(
            [*RARLHF, "explore", "pocket-imdb", "--port", str(port)],
            cwd=folder,
            env=settings(folder),
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs ignore SIGINT
        )
    try:
        until(lambda: server.poll() is not None or "Ctrl-C" in output.read_text(), 120)
        address = re.match(rf"http://127\.0\.0\.1:{port}/\?token=\S{{20,}}", output.read_text())
        assert address, output.read_text()
        listening = [c.laddr for c in psutil.Process(server.pid).net_connections() if c.status == psutil.CONN_LISTEN]
        assert [place.ip for place in listening if place.port == port] == ["127.0.0.1"]  # and on no other address
        with watched_page(path) as page:
            page.server, page.address, page.output, page.run, page.before = server, address[0], output, run, before
            page.goto(address[0], timeout=120_000)
            page.wait_for_selector(".rarlhf-explorer", timeout=120_000)
            yield page
    finally:
        server.kill()
        server.wait()


def contents(folder):
    """The bytes and the modification time of every file in `folder`."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_the_page_is_named_after_the_run_and_says_what_to_do(served):
    assert served.title() == "pocket-imdb: risk explorer"
    assert served.get_by_role("heading", name="pocket-imdb: risk explorer").is_visible()
    assert "Move a slider" in served.locator("body").inner_text()


def test_alphas_move_by_keyboard_and_mouse_methods_come_and_go_and_the_sliders_stay_in_sight(served):
    check_controls(served)


@pytest.mark.parametrize("width", [1280, 800])
def test_the_first_screen_has_sliders_figures_numbers_and_texts(served, width):
    served.set_viewport_size({"width": width, "height": 900})
    served.evaluate("scrollTo(0, 0)")
    served.wait_for_timeout(300)
    for part in (".slider", ".distributions .main-svg", ".numbers table", ".later .main-svg", ".texts article"):
        box = served.locator(part).first.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
        assert box["y"] + min(box["height"], 200) < 900
    assert served.evaluate("document.documentElement.scrollWidth") <= width
    assert slider(served, "measured α").bounding_box()["width"] > 0.6 * width


def test_the_address_restores_the_view(served):
    served.get_by_role("button", name="share").click()
    address = served.locator(".link").inner_text()
    assert address.startswith(served.address + "#")
    for view, value in (("alpha=0.3&trained=0.1&methods=sft,nobody", "30"), ("alpha=7&ranking=constructor", "30")):
        served.goto(f"{served.address}#{view}")
        until(lambda value=value: slider(served, "measured α").input_value() == value, 20)
        assert served.locator(".numbers tbody tr").count() == 1 and "SFT" in served.locator(".numbers").inner_text()
    served.goto(address)
    until(lambda: served.locator(".numbers tbody tr").count() == 2, 20)
    assert served.locator(".link").inner_text() == ""


def test_play_runs_alpha_down_and_stops(served):
    served.get_by_role("button", name="play").click()
    until(lambda: 70 < int(slider(served, "measured α").input_value()) < 99, 20)
    served.get_by_role("button", name="stop").click()
    stopped = slider(served, "measured α").input_value()
    served.wait_for_timeout(400)
    assert slider(served, "measured α").input_value() == stopped


def test_who_has_no_token_is_refused_and_nothing_but_the_page_is_served(served):
    root, _, token = served.address.partition("?")
    for path, status in (("", 403), ("?token=guessed", 403), (f"manifest.json?{token}", 404), (f"../?{token}", 404)):
        with pytest.raises(urllib.error.HTTPError, match=str(status)):
            urllib.request.urlopen(root + path, timeout=20)
    for method in ("POST", "PUT", "DELETE"):
        with pytest.raises(urllib.error.HTTPError, match="501"):
            urllib.request.urlopen(urllib.request.Request(served.address, method=method), timeout=20)
    headers = urllib.request.urlopen(served.address, timeout=20).headers
    assert "default-src 'none'" in headers["Content-Security-Policy"] and headers["Referrer-Policy"] == "no-referrer"


def test_nothing_left_the_machine_no_error_and_no_payload_ran(served):
    assert served.evaluate("typeof window.hacked") == "undefined"
    assert SHOWN in served.locator(".texts").inner_text()
    assert served.locator("mjx-container, img[src=x]").count() == 0
    assert served.strangers == []
    assert served.errors == []


# This test comes last, since it ends the server.
def test_control_c_ends_it_and_the_run_is_as_it_was(served):
    before = served.output.read_text()
    served.server.send_signal(signal.SIGINT)
    assert served.server.wait(60) == 0
    assert served.output.read_text() == before
    assert contents(served.run.folder) == served.before
