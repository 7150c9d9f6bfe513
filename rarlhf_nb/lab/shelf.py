"""Work that the runs of a sweep share: whoever does a stage first puts it on the shelf, and the others take it.

The shelf lies in the sweep's folder. It holds one small file per finished stage, named after the stage's fingerprint,
which says in which run the files are.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from rarlhf_nb.files import sealed, unsealed
from rarlhf_nb.lab.records import Record, damaged_files, read_record
from rarlhf_nb.lab.runs import Run

SHELF = ".shared"


@contextmanager
def alone(run: Run, fingerprint: str) -> Iterator[None]:
    """Inside the block no other run of the sweep works on the stage with this fingerprint; waits for it if need be."""
    if run.sweep is None:
        yield
        return
    folder = run.sweep / SHELF
    folder.mkdir(exist_ok=True)
    with FileLock(folder / f"{fingerprint}.lock"):
        yield


def put(run: Run, stage: str, fingerprint: str) -> None:
    """Offer a finished stage of `run` to the other runs of its sweep."""
    if run.sweep is not None:
        Run(run.sweep).write_text(f"{SHELF}/{fingerprint}.json", sealed({"run": run.folder.name, "stage": stage}))


def take(run: Run, fingerprint: str, writes: tuple[str, ...]) -> Record | None:
    """Copy a stage's files to `writes` from a run of the sweep that has finished it; None if no whole copy exists.

    Returns its record, with the other run in `taken_from`. Weights are linked where the file system allows it, since
    nobody changes them.
    """
    found = _find(run, fingerprint)
    if found is None:
        return None
    source, record = found
    for theirs, mine in zip(record.writes, writes, strict=True):
        target = run.path(mine)
        if (source / theirs).is_dir():
            run.write_folder(mine, lambda folder, place=source / theirs: _copy_folder(place, folder))
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / theirs, target)
    return record._replace(taken_from=source.name)


def _find(run: Run, fingerprint: str) -> tuple[Path, Record] | None:
    if run.sweep is None:
        return None
    try:
        place = unsealed((run.sweep / SHELF / f"{fingerprint}.json").read_text())
    except (OSError, ValueError):
        return None
    source = run.sweep / place["run"]
    record = read_record(source, place["stage"])
    whole = record is not None and record.fingerprint == fingerprint and not damaged_files(source, record)
    return (source, record) if whole else None


def _copy_folder(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    if source.endswith(".safetensors"):
        try:
            os.link(source, target)
            return
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(source, target)
