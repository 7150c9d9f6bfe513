import math
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress

import nbformat
import psutil
import pytest

from rarlhf_nb import sources
from rarlhf_nb.errors import UserError
from rarlhf_nb.lab import kernels
from rarlhf_nb.lab.batch import NotebookFailed, run_notebooks
from rarlhf_nb.lab.fingerprints import fingerprint, imported_modules
from rarlhf_nb.lab.runs import Run

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


def execute(run, notebooks, parameters=PARAMETERS, sources=(), **options):
    said = []
    run_notebooks(run, notebooks, parameters, list(map(str, sources)), say=said.append, **options)
    return [line.split(":")[0] for line in said if line.endswith("running")]


def test_notebooks_run_in_order_once_and_again_from_where_something_changed(run, tmp_path):
    first = notebook(tmp_path, "01_first", "print('seed', seed)")
    second = notebook(tmp_path, "02_second", "seed + 1")
    data = tmp_path / "data.csv"
    data.write_text("text\n")
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_text("weights")
    assert execute(run, [first, second], sources=[data, model]) == ["01_first", "02_second"]
    executed = nbformat.read(run.path("01_first.ipynb"), 4)
    assert "seed 5" in str(executed.cells[-1].outputs) and "widgets" not in executed.metadata
    assert str(tmp_path) not in run.path("01_first.ipynb").read_text()
    entry = run.manifest["notebooks"]["02_second"]
    assert entry["state"] == "done" and entry["seconds"] > 0
    assert execute(run, [first, second], sources=[data, model]) == []
    run.note_notebook("02_second", **entry | {"state": "running"})  # as a runner that was killed leaves it
    assert execute(run, [first, second], sources=[data, model]) == ["02_second"]
    second = notebook(tmp_path, "02_second", "seed + 2")
    assert execute(run, [first, second], sources=[data, model]) == ["02_second"]
    data.write_text("text\nother\n")
    assert execute(run, [first, second], sources=[data, model]) == ["01_first", "02_second"]
    (model / "model.safetensors").write_text("other weights")
    assert execute(run, [first, second], sources=[data, model]) == ["01_first", "02_second"]
    run.write_text("stages/data.json", "{}")
    run.write_text("training/rlhf.checkpoints/00000001/state.json", "{}")
    assert execute(run, [first], sources=[data, model], force=True) == ["01_first"]
    assert not run.path("stages").exists() and not run.path("training/rlhf.checkpoints").exists()


def test_a_damaged_or_missing_executed_notebook_is_made_again(run, tmp_path):
    path = notebook(tmp_path, "01_first", "print('seed', seed)")
    execute(run, [path])
    executed = run.path("01_first.ipynb")
    whole = executed.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole.replace(b"seed 5", b"seed 7"), None):
        executed.unlink() if damaged is None else executed.write_bytes(damaged)
        assert execute(run, [path]) == ["01_first"]
        assert b"seed 5" in executed.read_bytes() and execute(run, [path]) == []


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
    assert run.manifest["notebooks"]["01_first"]["state"] == "failed"
    code = "from rarlhf_nb.errors import UserError\nraise UserError('task.train_file holds no rows')"
    notebook(tmp_path, "01_first", code)
    with pytest.raises(UserError, match="task.train_file holds no rows"):
        execute(run, [path])


def test_a_kernel_that_dies_is_a_failure_like_any_other(run, tmp_path):
    path = notebook(tmp_path, "01_first", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(NotebookFailed, match="01_first failed with DeadKernelError"):
        execute(run, [path])
    assert run.manifest["notebooks"]["01_first"]["state"] == "failed"
    assert sorted(file.name for file in run.folder.iterdir()) == [".lock", "01_first.failed.ipynb", "manifest.json"]


def test_unknown_parameters_and_a_missing_cell_are_refused_before_anything_runs(run, tmp_path):
    path = notebook(tmp_path, "01_first", "pass")
    with pytest.raises(UserError, match="01_first.ipynb has no parameter sede"):
        execute(run, [path], parameters={"sede": 1})
    with pytest.raises(UserError, match="01_first.ipynb has no parameter int"):
        execute(run, [path], parameters={"int": 1})  # a type in the parameters cell is no parameter
    with pytest.raises(UserError, match="0 cells tagged"):
        execute(run, [notebook(tmp_path, "02_second", "pass", tag="other")])
    assert run.manifest["notebooks"] == {}


def test_a_notebook_depends_on_the_modules_that_it_imports_and_on_theirs(tmp_path):
    path = notebook(tmp_path, "01_first", "from rarlhf_nb.risk import cvar")
    assert {module.name for module in imported_modules(path)} == {"__init__.py", "risk.py", "errors.py"}
    path = notebook(tmp_path, "01_lazy", "from rarlhf_nb import cvar")
    assert {module.name for module in imported_modules(path)} == {"__init__.py", "risk.py", "errors.py"}
    path = notebook(tmp_path, "02_second", "from rarlhf_nb import Experiment")
    names = {module.name for module in imported_modules(path)}
    assert {"trainer.py", "grammar.py", "sft.py", "rewards.py"} <= names and "figures.py" not in names


def test_only_a_module_that_the_notebook_imports_changes_its_fingerprint(tmp_path, monkeypatch):
    package = tmp_path / "rarlhf_nb"
    (package / "inner").mkdir(parents=True)
    files = {
        "__init__.py": "",
        "used.py": "import rarlhf_nb.inner.deep",
        "inner/__init__.py": "",
        "inner/deep.py": "",
        "unused.py": "",
    }
    for name, source in files.items():
        (package / name).write_text(source)
    monkeypatch.setattr(sources, "PACKAGE", package)
    path = notebook(tmp_path, "01_first", "%matplotlib inline\n!true\nfrom rarlhf_nb import used")

    def changes(name, first_line):
        before = fingerprint(path, PARAMETERS, [], "")
        (package / name).write_text(f"{first_line}\n{(package / name).read_text()}")
        return fingerprint(path, PARAMETERS, [], "") != before

    assert not any(changes(name, '"""What it is for."""  # and why') for name in files)
    assert {name for name in files if changes(name, "changed = True")} == set(files) - {"unused.py"}


@pytest.mark.parametrize("forks", [kernels.FORKS, False])
def test_the_kernel_has_no_bars_and_no_widgets_and_the_runner_keeps_its_environment(forks, run, tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "FORKS", forks)
    for name in ("RARLHF_STATIC", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TQDM_DISABLE", "0")  # what the user sets stays
    names = ["RARLHF_STATIC", "HF_HUB_DISABLE_TELEMETRY", "TQDM_DISABLE"]
    code = f"import os; assert [os.environ[name] for name in {names}] == ['1', '1', '0']"
    execute(run, [notebook(tmp_path, "01_first", code)])
    assert "RARLHF_STATIC" not in os.environ


ONE_RUN = """
import sys
from pathlib import Path
from rarlhf_nb.lab.runs import Run
from rarlhf_nb.lab.batch import run_notebooks
run_notebooks(Run.open(sys.argv[1], {}, 5, root=Path("runs")), [Path("01_first.ipynb")], {"seed": 5}, [])
"""


def start(folder, name, **options):
    command = [sys.executable, "-c", ONE_RUN, name]
    options |= {"env": os.environ | {"WHO": name}, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, **options)


FORKED = """
import multiprocessing, os, sys
imported = "rarlhf_nb.risk" in sys.modules
from rarlhf_nb.risk import cvar
child = multiprocessing.Process(target=int)
child.start()
child.join()
print(imported, os.getppid(), os.getsid(0) == os.getpid(), child.exitcode)
"""


@pytest.mark.skipif(not kernels.FORKS, reason="kernels are forked on Linux only")
def test_kernels_are_forked_from_one_process_that_has_imported_what_they_import(tmp_path):
    for name in ("01_first", "02_second"):
        notebook(tmp_path, name, FORKED)
    both = ONE_RUN.replace('[Path("01_first.ipynb")]', 'sorted(Path().glob("*.ipynb"))')
    command = [sys.executable, "-c", f"{both}\nimport os; print(os.getpid())", "mine"]
    runner = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert runner.returncode == 0, runner.stderr
    first, second = (
        nbformat.read(tmp_path / "runs" / "mine" / f"{name}.ipynb", 4).cells[-1].outputs[0].text.split()
        for name in ("01_first", "02_second")
    )
    assert first == second and [first[0], *first[2:]] == ["True", "True", "0"]
    assert first[1] != runner.stdout.split()[-1]  # the parent of both is not the runner


@pytest.mark.skipif(not kernels.FORKS, reason="kernels are forked on Linux only")
def test_ctrl_c_during_the_imports_shows_no_traceback_of_theirs(tmp_path):
    notebook(tmp_path, "01_first", "from rarlhf_nb.lab import experiment")
    runner = start(tmp_path, "mine", start_new_session=True)
    imports = None
    while imports is None and runner.poll() is None:
        time.sleep(0.05)
        for child in psutil.Process(runner.pid).children():
            with suppress(psutil.Error):
                imports = child if any("torch" in place.path for place in child.memory_maps()) else imports
    os.killpg(runner.pid, signal.SIGINT)
    _, errors = runner.communicate(timeout=120)
    assert "KeyboardInterrupt" in errors and "forkserver.py" not in errors
    assert not imports.is_running() or imports.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("forks", [kernels.FORKS, False])
def test_a_function_is_called_in_a_process_of_the_kernels(forks, monkeypatch):
    monkeypatch.setattr(kernels, "FORKS", forks)
    assert kernels.call_apart(math.sqrt, 4.0) == 2.0
    assert (kernels.call_apart(os.getpid) != os.getpid()) == forks
    with pytest.raises(ValueError, match="math domain error"):
        kernels.call_apart(math.sqrt, -1.0)


def test_runs_at_once_from_one_folder_never_meet(tmp_path):
    count = 4
    notebook(tmp_path, "01_first", "import os, time; time.sleep(2); print('kernel of', os.environ['WHO'])")
    names = [f"run_{number}" for number in range(count)]
    runners = [start(tmp_path, name) for name in names]
    for name, runner in zip(names, runners, strict=True):
        _, errors = runner.communicate(timeout=120)
        assert runner.returncode == 0, errors
        executed = nbformat.read(tmp_path / "runs" / name / "01_first.ipynb", 4)
        assert executed.cells[-1].outputs[0].text == f"kernel of {name}\n"
    assert {path.name for path in tmp_path.iterdir()} == {"01_first.ipynb", "runs"}
    for name in names:
        assert {path.name for path in (tmp_path / "runs" / name).iterdir()} == {
            ".lock",
            "01_first.ipynb",
            "manifest.json",
        }


def test_a_run_in_use_is_refused_and_a_killed_one_leaves_nothing_in_the_way(tmp_path):
    notebook(tmp_path, "01_first", "print('begun', flush=True)\nimport time; time.sleep(60)")
    runner = start(tmp_path, "mine")
    run = tmp_path / "runs" / "mine"
    for _ in range(600):
        if (run / ".kernel" / "kernel.json").exists():
            break
        time.sleep(0.1)
    before = (run / "manifest.json").read_bytes()
    second = start(tmp_path, "mine")
    _, errors = second.communicate(timeout=120)
    assert re.search(rf"run = 'mine' is in use by process {runner.pid} on \S+ since \d{{4}}-.*choose another", errors)
    assert second.returncode != 0 and (run / "manifest.json").read_bytes() == before and runner.poll() is None
    runner.kill()
    runner.communicate()
    assert {path.name for path in tmp_path.iterdir()} == {"01_first.ipynb", "runs"}
    notebook(tmp_path, "01_first", "print('again')")
    third = start(tmp_path, "mine")
    _, errors = third.communicate(timeout=120)
    assert third.returncode == 0, errors
    assert {path.name for path in run.iterdir()} == {".lock", "01_first.ipynb", "manifest.json"}


def test_a_path_too_long_for_a_socket_is_no_hindrance(tmp_path):
    run = Run.open("n" * 120, {}, seed=5, root=tmp_path / "runs")
    assert execute(run, [notebook(tmp_path, "01_first", "print(seed)")]) == ["01_first"]
