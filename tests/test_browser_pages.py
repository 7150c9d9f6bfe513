"""Pages in a real browser: report.html opened from disk, offline, and the page that `rarlhf explore` serves."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request

import pytest
from browser import (
    REPOSITORY,
    check_measured_alpha,
    check_trained_alpha,
    chromium,
    episodes,
    free_port,
    made_up_run,
    plot,
    until,
    watched_page,
)

RARLHF = [sys.executable, "-m", "rarlhf_nb.running.cli"]
SHOWN = "<script>hacked=1</script><img src=x onerror='window.hacked=1'></div></td> $x^2$"


def settings(folder):
    """The environment of a command: it ignores the user's Jupyter settings, and is static as in a batch run."""
    places = {name: str(folder / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")}
    return os.environ | places | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "RARLHF_STATIC": "1"}


def log(method):
    """A training log with the mean rewards of `method`, ten episodes per iteration."""
    means = episodes(method)["reward"].groupby(lambda row: row // 10).mean()
    return "".join(json.dumps({"iteration": i + 1, "mean_reward": mean}) + "\n" for i, mean in enumerate(means))


# This test comes first: only one playwright event loop can run at a time, and the one of `served` runs to the end.
def test_the_report_opens_from_the_disk_offline(tmp_path):
    path = chromium()
    run = made_up_run(tmp_path)
    run.path("training").mkdir()
    run.path("training", "rlhf.jsonl").write_text(log("rlhf"))
    subprocess.run([*RARLHF, "report", "pocket-imdb"], cwd=tmp_path, env=settings(tmp_path), check=True, timeout=300)
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
            assert all(" ".join(cell.split()) in " ".join(text.split()) for cell in hardest[column])
        assert page.evaluate("typeof window.hacked") == "undefined"
        assert page.locator("img[src=x]").count() == 0
        assert page.strangers == [file.as_uri()]
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
        until(lambda: answers(f"http://127.0.0.1:{port}/login"), 30)
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


def answers(address):
    try:
        return urllib.request.urlopen(address, timeout=5).status == 200
    except OSError:
        return False


def kernel(page):
    """The address of the page's kernel, without the scheme."""
    key = json.loads(page.locator("#jupyter-config-data").text_content())["kernelId"]
    return f"{urllib.parse.urlsplit(page.address).netloc}/api/kernels/{key}"


def test_the_page_is_named_after_the_run_and_says_what_to_do(served):
    assert served.title() == "pocket-imdb: risk explorer"
    assert served.get_by_role("heading", name="pocket-imdb: risk explorer").is_visible()
    assert "Move measured α" in served.locator("body").inner_text()
    assert served.locator(".jp-InputArea, .cm-editor, textarea, .rarlhf-training").count() == 0


def test_measured_alpha_moves_by_keyboard_and_by_mouse(served):
    check_measured_alpha(served)


def test_trained_alpha_changes(served):
    check_trained_alpha(served)


def test_the_schedule_follows_its_controls(served):
    schedule = served.locator(".rarlhf-schedule")
    assert schedule.get_by_text("share of the iterations (%)").is_visible()
    alpha = schedule.locator(".widget-slider", has=served.locator(".widget-label:text-is('α')"))
    alpha.locator(".noUi-handle").focus()
    served.keyboard.press("ArrowRight")
    schedule.locator("tr", has_text="yours").get_by_text("0.41", exact=True).wait_for()
    served.wait_for_function(f"() => {plot('schedule', 0)}.data.at(-1).y.at(-1) == 100 * 53 / 128")


def test_who_has_no_token_is_refused(served):
    root = served.address.partition("?")[0]
    for query in ("", "?token=guessed"):
        with urllib.request.urlopen(root + query, timeout=20) as answer:
            assert urllib.parse.urlsplit(answer.url).path == "/login" and "explorer" not in answer.read().decode()
    for path in ("", "/channels"):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"http://{kernel(served)}{path}", timeout=20)


def test_the_kernel_takes_no_code_from_the_page(served):
    """It ignores an execute_request and a debug_request, and answers the harmless request that follows."""
    file = served.run.folder / "written_by_a_visitor"
    script = """([address, code]) => new Promise((resolve, reject) => {
        const socket = new WebSocket(address), replies = [];
        const send = (channel, msg_type, content) => socket.send(JSON.stringify({channel, content, metadata: {},
            parent_header: {}, buffers: [], header: {msg_id: msg_type, msg_type, username: "", session: "s",
            version: "5.3", date: new Date().toISOString()}}));
        socket.onerror = () => reject("no socket");
        socket.onopen = () => {
            send("shell", "execute_request", {code, silent: false, store_history: false, user_expressions: {},
                                              allow_stdin: false, stop_on_error: false});
            send("control", "debug_request", {type: "request", seq: 1, command: "evaluate",
                                              arguments: {expression: code}});
            send("shell", "kernel_info_request", {});
        };
        socket.onmessage = ({data}) => {
            const type = JSON.parse(data).header.msg_type;
            replies.push(type);
            if (type == "kernel_info_reply") { socket.close(); resolve(replies); }
        };
    })"""
    replies = served.evaluate(script, [f"ws://{kernel(served)}/channels", f"open({str(file)!r}, 'w')"])
    assert "kernel_info_reply" in replies and not {"execute_reply", "debug_reply"} & set(replies)
    assert not file.exists()


def test_nothing_left_the_machine_no_error_and_no_payload_ran(served):
    assert served.evaluate("typeof window.hacked") == "undefined"
    assert SHOWN in served.locator(".rarlhf-explorer .rarlhf table").nth(1).inner_text()
    assert served.locator("mjx-container, img[src=x]").count() == 0
    assert served.strangers == []
    assert served.errors == []


def test_a_picture_of_it(served):
    """A screenshot to look at, if RARLHF_SCREENSHOTS names a folder."""
    folder = os.environ.get("RARLHF_SCREENSHOTS") or pytest.skip("RARLHF_SCREENSHOTS names no folder")
    served.set_viewport_size({"width": 1280, "height": 2600})
    served.wait_for_timeout(2000)
    served.screenshot(path=f"{folder}/explore-1280.png")


# This test comes last, since it ends the server.
def test_control_c_ends_it_and_the_run_is_as_it_was(served):
    before = served.output.read_text()
    served.server.send_signal(signal.SIGINT)
    assert served.server.wait(60) == 0
    assert served.output.read_text() == before
    assert contents(served.run.folder) == served.before
