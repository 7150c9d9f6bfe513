"""A full disk, a read-only one, and a clock that goes backwards: one line, nothing lost, and the run goes on."""

import os
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from small_run import rarlhf, write_notebook

from rarlhf_nb.lab.messages import storage_trouble

# fills what is left of the disk, then trains on as a notebook does
FILLS = """
from pathlib import Path
from rarlhf_nb.lab.runs import Run
here = Run(Path("papermill_runs") / run)
here.write("first.txt", "finished before")
if not Path("enough").exists():
    try:
        with open("papermill_runs/filler", "wb") as file:
            while True:
                file.write(bytes(1 << 20))
    except OSError:
        pass
here.write("second.txt", "x" * 3_000_000)
print("written")
"""


@contextmanager
def small_disk(folder: Path, options: str = "size=4m"):
    """A file system of its own at `folder`; skips the test if none can be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def checkout(checkout):
    write_notebook(checkout, "01_data_prep", FILLS)
    return checkout


RUN = ("run", "--run", "mine", "--workers", "1")


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(checkout):
    with small_disk(checkout / "papermill_runs") as disk:
        errors = rarlhf(*RUN, status=2).stderr
        assert errors.startswith("error: the disk is full") and errors.count("\n") == 1
        assert "the same command goes on from there" in errors
        assert (disk / "mine" / "first.txt").read_text() == "finished before"
        assert not (disk / "mine" / "second.txt").exists()
        (disk / "filler").unlink()
        (checkout / "enough").touch()
        rarlhf(*RUN)
        assert (disk / "mine" / "second.txt").stat().st_size == 3_000_000


def test_a_read_only_folder_is_one_line_and_stays_readable(checkout):
    with small_disk(checkout / "papermill_runs", "size=64m") as disk:
        (checkout / "enough").touch()
        rarlhf(*RUN)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for name in ("mine", "other"):
            errors = rarlhf("run", "--run", name, "--workers", "1", status=2).stderr
            assert errors.startswith("error: the disk is read-only") and errors.count("\n") == 1
        assert "done" in rarlhf("status", "mine").stdout
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        assert "01_data_prep: done" in rarlhf(*RUN).stdout


def test_a_clock_that_goes_backwards_changes_nothing(checkout):
    (checkout / "enough").touch()
    rarlhf(*RUN)
    future = time.time() + 86_400
    for path in (checkout / "papermill_runs").rglob("*"):
        os.utime(path, (future, future))
    write_notebook(checkout, "01_data_prep", FILLS + "print('more')")
    rarlhf(*RUN)
    executed = nbformat.read(checkout / "papermill_runs" / "mine" / "01_data_prep.ipynb", 4)
    assert "more" in executed.cells[-1].outputs[0].text


def test_what_libraries_say_of_a_full_disk_is_recognised():
    said = 'SafetensorError: Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "No space" })'
    assert storage_trouble(said) == "the disk is full"
    assert storage_trouble(OSError(28, "No space left on device", "a/b")) == "the disk is full: a/b"
    assert storage_trouble(OSError(2, "No such file or directory", "a/b")) is None
    assert storage_trouble("a completion about a device") is None
