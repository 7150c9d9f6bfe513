"""What the finished stages of a run left, what the runs of a sweep share of it, and who works on a run.

The record of a stage is written last. So a stage without one is not done, and whatever reads a file of a finished stage
can tell whether the file is still the one that the stage wrote. In a sweep, whoever does a stage first offers it to the
others: a small file, named after the stage's key, says in which run the stage's files are.
"""

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from filelock import FileLock, Timeout

from rarlhf_nb.errors import UserError
from rarlhf_nb.files import checksum, files_of, written_whole

PACKAGE = Path(__file__).parents[1]
RECORDS = "stages"  # in a run folder
SWEEP, SHARED = "sweep.json", ".shared"  # in the folder of a sweep; the second also in that of a run
KEEP = "RARLHF_KEEP"  # environment variable: what is finished is kept although the code has changed since
CHECKSUM = "checksum"  # of a JSON file, among its own keys
LOCK, OWNER = ".lock", ".holder.json"  # in a run folder


def content_id(source: str) -> Any:
    """What tells the content of a model or data set apart from others under the same name, as JSON.

    For a file its checksum; for a folder its files' names, sizes and times, since models are large; a hub id stands for
    itself.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return checksum(path)
    return [source, *([file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files_of(path))]


def dumps_with_checksum(content: dict[str, Any]) -> str:
    """`content` as JSON with its own checksum."""
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps(content | {CHECKSUM: digest}, indent=2) + "\n"


def loads_with_checksum(text: str) -> dict[str, Any]:
    """What `dumps_with_checksum` was given. Raises `ValueError` for text that is not exactly what it made."""
    content = json.loads(text)
    if not isinstance(content, dict) or not content.pop(CHECKSUM, None) or text != dumps_with_checksum(content):
        raise ValueError("the checksum is missing or wrong")
    return content


class Record(NamedTuple):
    """A finished stage.

    fingerprint: its key, a hash of everything that determines its files. notebook: the one that runs it, or "". writes:
    the files and folders that it leaves. files: path in the run folder -> checksum. seconds: what the work took.
    versions: of the packages. taken_from: the run of the same sweep that did the work.
    """

    stage: str
    fingerprint: str
    notebook: str
    writes: list[str]
    files: dict[str, str]
    seconds: float
    versions: dict[str, str]
    taken_from: str | None = None


def record_file(stage: str) -> str:
    """The path of a stage's record in the run folder."""
    return f"{RECORDS}/{stage.replace(' ', '_')}.json"


def read_record(run_folder: Path, stage: str) -> Record | None:
    """The record of a stage; None if it is not done or its record is damaged."""
    path = run_folder / record_file(stage)
    try:
        status = path.stat()
        return _read(path, status.st_mtime_ns, status.st_ino, status.st_size)
    except (OSError, ValueError, TypeError):
        return None


@lru_cache(maxsize=4096)  # every table that is read asks for every record of its run
def _read(path: Path, changed: int, inode: int, size: int) -> Record:
    return Record(**loads_with_checksum(path.read_text()))


def read_records(run_folder: Path) -> list[Record]:
    """The records of all finished stages."""
    found = [read_record(run_folder, path.stem) for path in sorted((run_folder / RECORDS).glob("*.json"))]
    return [record for record in found if record is not None]


def damaged_files(run_folder: Path, record: Record) -> list[str]:
    """The files of a finished stage that are missing or no longer those that it wrote."""
    return [
        name
        for name, own in record.files.items()
        if not (run_folder / name).is_file() or checksum(run_folder / name) != own
    ]


def check_files(run_folder: Path, relative: str) -> None:
    """Compare a file, or all files in a folder, with the records; files that no record names pass.

    Raises `UserError` that names a damaged file and what makes it again: a notebook, or for a policy of the user's own
    a call.
    """
    for record in read_records(run_folder):
        mine = {name: own for name, own in record.files.items() if name == relative or name.startswith(f"{relative}/")}
        for name in damaged_files(run_folder, record._replace(files=mine)):
            raise UserError(
                f"{name} is damaged or missing in run {run_folder.name!r}: {_remedy(record)} makes it again."
            )


def _remedy(record: Record) -> str:
    if not record.notebook:
        stage, _, policy = record.stage.partition(" ")
        return f"`experiment.{stage}({policy!r})`"
    return f"run the same `rarlhf run` command again, or notebook {record.notebook}, whose stage {record.stage!r}"


@cache  # later edits do not reach the modules that this process has loaded
def code_hash(*places: str) -> str:
    """A hash of the package's code to the last byte: all of the library, and `places` in lab, such as "evaluation"."""
    library = {path for path in PACKAGE.rglob("*.py") if PACKAGE / "lab" not in path.parents}
    of_lab = {path for place in places for path in files_of(PACKAGE / "lab" / place) if path.suffix == ".py"}
    found = hashlib.sha256()
    for path in sorted(library | of_lab):
        found.update(f"{path.relative_to(PACKAGE)} {checksum(path)}\n".encode())
    return found.hexdigest()


def stage_lock(run_folder: Path, fingerprint: str, timeout: float = -1) -> FileLock:
    """Inside the block no other process, and no other run of the sweep, works on the stage with this fingerprint.

    Waits for it; raises `filelock.Timeout` after `timeout` seconds unless that is -1.
    """
    return FileLock(_beside(run_folder) / f"{fingerprint}.lock", timeout=timeout)


def stage_output(run_folder: Path, fingerprint: str) -> Path:
    """The file that keeps for a notebook what its stage printed in a process ahead of it."""
    return _beside(run_folder) / f"{fingerprint}.txt"


def _beside(run_folder: Path) -> Path:
    """The folder of what processes that share stages tell each other."""
    folder = _store(run_folder) or run_folder / SHARED
    folder.mkdir(exist_ok=True)
    return folder


def share(run_folder: Path, record: Record) -> None:
    """Offer a finished stage to the other runs of the sweep."""
    store = _store(run_folder)
    if store is not None:
        with written_whole(store / f"{record.fingerprint}.json") as file:
            file.write_text(dumps_with_checksum({"run": run_folder.name, "stage": record.stage}))


def fetch(run_folder: Path, fingerprint: str, writes: tuple[str, ...]) -> Record | None:
    """Copy a stage's files to `writes` from a run of the sweep that has finished it; None if no whole copy exists.

    Returns its record, with the other run in `taken_from`. Weights are linked if the file system allows it, since
    nobody changes them.
    """
    store = _store(run_folder)
    try:
        offer = loads_with_checksum((store / f"{fingerprint}.json").read_text()) if store else None
    except (OSError, ValueError):
        return None
    if offer is None:
        return None
    source = run_folder.with_name(offer["run"])
    record = read_record(source, offer["stage"])
    if record is None or record.fingerprint != fingerprint or damaged_files(source, record):
        return None
    for theirs, mine in zip(record.writes, writes, strict=True):
        with written_whole(run_folder / mine) as target:
            if (source / theirs).is_dir():
                shutil.copytree(source / theirs, target, copy_function=_link_or_copy)
            else:
                shutil.copyfile(source / theirs, target)
    return record._replace(taken_from=source.name)


def _store(run_folder: Path) -> Path | None:
    """The folder of the stages that the runs of a sweep share; None for a run on its own."""
    return run_folder.with_name(SHARED) if run_folder.with_name(SWEEP).exists() else None


def _link_or_copy(source: str, target: str) -> None:
    if source.endswith(".safetensors"):
        try:
            os.link(source, target)
            return
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(source, target)


@contextmanager
def run_lock(run_folder: Path, wait: float = 0.0) -> Iterator[None]:
    """Inside the block this process alone works on the run; the operating system frees the lock when the process dies.

    Raises `UserError` if another process still works on it after `wait` seconds.
    """
    note = run_folder / OWNER
    try:
        with FileLock(run_folder / LOCK, timeout=wait):
            me = {"process": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
            with written_whole(note) as file:
                file.write_text(json.dumps(me))
            try:
                yield
            finally:
                note.unlink(missing_ok=True)
    except Timeout:
        owner = lock_owner(run_folder)
        who = f" by process {owner['process']} on {owner['host']} since {owner['since']}" if owner else ""
        raise UserError(
            f"run = {run_folder.name!r} is in use{who}: wait until it ends, or choose another run name."
        ) from None


def lock_owner(run_folder: Path) -> dict[str, Any] | None:
    """Who works on the run: process, host and since when; None if the owner's note names nobody.

    An owner that was killed leaves the note behind; if it ran on this machine, it is recognised as dead.
    """
    try:
        note = json.loads((run_folder / OWNER).read_text())
        dead = note["host"] == socket.gethostname() and not psutil.pid_exists(note["process"])
        return None if dead else note
    except (OSError, ValueError, KeyError, TypeError):  # not written yet, already removed, or damaged
        return None
