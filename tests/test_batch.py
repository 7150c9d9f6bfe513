"""The notebooks of a run: one after another, whatever they raise, whoever dies, and however many runs there are."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab import notebooks
from rarlhf_nb.lab.notebooks import NotebookFailed, notebook_files, run_notebooks
from rarlhf_nb.lab.runs import Run, default_root

PARAMETERS = {"seed": 5}


def notebook(folder, name, code, parameters="seed: int = 1  # of everything", tag="parameters"):
    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": [tag]}), nbformat.v4.new_code_cell(code)]
    nb = nbformat.v4.new_notebook(cells=cells)
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nb, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


@pytest.fixture
def run(tmp_path):
    return Run.open("mine", {}, seed=5, root=tmp_path / "runs")


def execute(run, paths, parameters=PARAMETERS, **options):
    lines = []
    run_notebooks(run, paths, parameters, echo=lines.append, **options)
    return lines


def entries(folder):
    """What is in a folder, without the file of the lock."""
    return {path.name for path in folder.iterdir()} - {".lock"}


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def test_notebooks_run_in_order_with_their_parameters_and_tell_no_paths(run, tmp_path):
    first = notebook(tmp_path, "01_first", "import os; open('order', 'a').write('first '); print('seed', seed)")
    second = notebook(tmp_path, "02_second", "print(open('order').read(), seed + 1)")
    lines = execute(run, [first, second], folder=tmp_path)
    assert [re.sub(r"\d+ s", "N s", line) for line in lines] == [
        f"{name}: {what}" for name in ("01_first", "02_second") for what in ("running", "done in N s")
    ]
    executed = nbformat.read(run.path("01_first.ipynb"), 4)
    assert "seed 5" in str(executed.cells[-1].outputs) and "widgets" not in executed.metadata
    assert str(tmp_path) not in run.path("01_first.ipynb").read_text()
    assert "first  6" in str(nbformat.read(run.path("02_second.ipynb"), 4).cells[-1].outputs)
    entry = run.manifest["notebooks"]["02_second"]
    assert entry["state"] == "done" and entry["seconds"] > 0
    run.write("stages/data.json", "{}")
    run.write("training/rlhf.checkpoints/00000001/state.json", "{}")
    execute(run, [first], folder=tmp_path, force=True)
    assert not run.path("stages").exists() and not run.path("training/rlhf.checkpoints").exists()


def test_a_failure_keeps_what_was_there_and_the_failed_notebook(run, tmp_path):
    path = notebook(tmp_path, "01_first", "print('fine')")
    execute(run, [path])
    before = run.path("01_first.ipynb").read_text()
    notebook(tmp_path, "01_first", "1 / 0")
    with pytest.raises(
        NotebookFailed, match=r"(?s)01_first failed with ZeroDivisionError.*1 / 0.*01_first.failed.ipynb"
    ):
        execute(run, [path])
    assert run.path("01_first.ipynb").read_text() == before
    assert "ZeroDivisionError" in run.path("01_first.failed.ipynb").read_text()
    entry = run.manifest["notebooks"]["01_first"]
    assert entry["state"] == "failed" and entry["cell"] == 3 and "ZeroDivisionError" in entry["error"]
    code = "from rarlhf_nb.errors import UserError\nraise UserError('task.train_file holds no rows')"
    notebook(tmp_path, "01_first", code)
    with pytest.raises(UserError, match="task.train_file holds no rows"):
        execute(run, [path])


def test_a_kernel_that_dies_is_a_failure_like_any_other(run, tmp_path):
    path = notebook(tmp_path, "01_first", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(NotebookFailed, match="01_first failed with DeadKernelError: .* too much memory"):
        execute(run, [path])
    assert run.manifest["notebooks"]["01_first"]["state"] == "failed"
    assert entries(run.folder) == {"01_first.failed.ipynb", "manifest.json"}


def test_unknown_parameters_and_a_missing_cell_are_refused_before_anything_runs(run, tmp_path):
    path = notebook(tmp_path, "01_first", "pass")
    with pytest.raises(UserError, match="01_first.ipynb has no parameter sede"):
        execute(run, [path], parameters={"sede": 1})
    with pytest.raises(UserError, match="01_first.ipynb has no parameter int"):
        execute(run, [path], parameters={"int": 1})  # a type in the parameters cell is no parameter
    with pytest.raises(UserError, match="02_second.ipynb has no cell with parameters"):
        execute(run, [path, notebook(tmp_path, "02_second", "pass", tag="other")])
    assert run.manifest["notebooks"] == {}


def test_a_notebook_has_no_bars_and_no_widgets_and_keeps_the_users_environment(run, tmp_path):
    for name in ("RARLHF_STATIC", "HF_HUB_DISABLE_TELEMETRY"):
        os.environ.pop(name, None)
    os.environ["TQDM_DISABLE"] = "0"  # what the user sets stays
    names = ["RARLHF_STATIC", "HF_HUB_DISABLE_TELEMETRY", "TQDM_DISABLE"]
    code = f"import os; assert [os.environ[name] for name in {names}] == ['1', '1', '0']"
    execute(run, [notebook(tmp_path, "01_first", code)])


def test_notebooks_come_from_the_nearest_checkout_or_from_the_package(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    own = notebook(tmp_path / "notebooks", "01_first", "pass")
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    assert notebook_files() == [own] and default_root() == tmp_path / "papermill_runs"
    monkeypatch.chdir("/")
    repository = Path(__file__).parent.parent
    assert {path.parent for path in notebook_files()} == {repository / "notebooks"} and len(notebook_files()) == 6
    assert default_root() == repository / "papermill_runs"
    monkeypatch.setattr(notebooks, "checkout", lambda folder: None)  # as in a package that is installed from a wheel
    monkeypatch.setattr(notebooks, "INSTALLED", tmp_path / "notebooks")
    assert notebook_files() == [own]


ONE_RUN = """
import sys
from pathlib import Path
from rarlhf_nb.lab.notebooks import run_notebooks
from rarlhf_nb.lab.runs import Run
run_notebooks(Run.open(sys.argv[1], {}, 5, root=Path("runs")), [Path("01_first.ipynb")], {"seed": 5})
"""


def start(folder, name):
    environment = os.environ | {"WHO": name}
    command = [sys.executable, "-c", ONE_RUN, name]
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def test_runs_at_once_from_one_folder_never_meet(tmp_path):
    notebook(tmp_path, "01_first", "import os, time; time.sleep(2); print('kernel of', os.environ['WHO'])")
    names = [f"run_{number}" for number in range(4)]
    runners = [start(tmp_path, name) for name in names]
    for name, runner in zip(names, runners, strict=True):
        _, errors = runner.communicate(timeout=120)
        assert runner.returncode == 0, errors
        executed = nbformat.read(tmp_path / "runs" / name / "01_first.ipynb", 4)
        assert executed.cells[-1].outputs[0].text == f"kernel of {name}\n"
    assert entries(tmp_path) == {"01_first.ipynb", "runs"}
    for name in names:
        assert entries(tmp_path / "runs" / name) == {"01_first.ipynb", "manifest.json"}


INTERRUPTED_ANSWER = """
def interrupt_after(send):
    from os import getpid, kill

    def interrupted(stream, message, *parts, **options):
        sent = send(stream, message, *parts, **options)
        if message == "kernel_info_reply":
            kill(getpid(), 2)
        return sent

    return interrupted


session = get_ipython().kernel.session
session.send = interrupt_after(session.send)
"""


def test_an_interrupt_right_after_the_last_answer_leaves_no_word(tmp_path):
    # ipykernel 7.4 answers papermill's last question while it still heeds the interrupt that follows
    notebook(tmp_path, "01_first", INTERRUPTED_ANSWER)
    _, errors = start(tmp_path, "mine").communicate(timeout=120)
    assert errors == ""


def test_a_run_in_use_is_refused_and_a_killed_one_leaves_nothing_in_the_way(tmp_path):
    notebook(tmp_path, "01_first", "open('begun', 'w').close()\nimport time; time.sleep(60)")
    runner = start(tmp_path, "mine")
    run = tmp_path / "runs" / "mine"
    until((tmp_path / "begun").exists)
    (kernel,) = psutil.Process(runner.pid).children()
    before = (run / "manifest.json").read_bytes()
    second = start(tmp_path, "mine")
    _, errors = second.communicate(timeout=120)
    assert re.search(rf"run = 'mine' is in use by process {runner.pid} on \S+ since \d{{4}}-.*choose another", errors)
    assert second.returncode != 0 and (run / "manifest.json").read_bytes() == before and runner.poll() is None
    runner.kill()
    runner.communicate()
    kernel.wait(timeout=5)  # it ends with its runner
    notebook(tmp_path, "01_first", "print('again')")
    third = start(tmp_path, "mine")
    _, errors = third.communicate(timeout=120)
    assert third.returncode == 0, errors
    assert entries(run) == {"01_first.ipynb", "manifest.json"}


@pytest.mark.parametrize("end", ["raise", "import os; os._exit(0)"], ids=["answers", "answers no more"])
def test_ctrl_c_reaches_the_notebook_which_ends_in_its_own_time(end, tmp_path):
    code = (
        "import time\nopen('begun', 'w').close()\n"
        "try:\n    time.sleep(60)\n"
        f"except KeyboardInterrupt:\n    time.sleep(3)\n    open('saved', 'w').close()\n    {end}"
    )
    notebook(tmp_path, "01_first", code)
    runner = start(tmp_path, "mine")
    until((tmp_path / "begun").exists)
    time.sleep(0.5)  # until the notebook waits
    runner.send_signal(signal.SIGINT)
    _, errors = runner.communicate(timeout=30)
    assert (tmp_path / "saved").exists() and "\nKeyboardInterrupt\n" in errors
    assert runner.returncode == -signal.SIGINT  # as Python ends after Ctrl-C
    run = Run(tmp_path / "runs" / "mine")
    assert run.manifest["notebooks"]["01_first"]["state"] == "interrupted"
    assert entries(run.folder) == {"01_first.failed.ipynb", "manifest.json"}
