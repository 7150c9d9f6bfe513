"""What each finished stage of a run left: its fingerprint, and the checksums of its files.

A record is written last. So a stage without one is not done, and whatever reads a file of a finished stage can tell
whether the file is still the one that the stage wrote.
"""

from pathlib import Path
from typing import NamedTuple

from rarlhf_nb.errors import UserError
from rarlhf_nb.files import checksum, files_of, unsealed

RECORDS = "stages"


class Record(NamedTuple):
    """A finished stage.

    fingerprint: of everything that determines its files. notebook: the one that runs it, or "". writes: the files and
    folders that it leaves. files: path in the run folder -> checksum. seconds: what the work took. versions: of the
    packages. taken_from: the run of the same sweep that did the work.
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
    return _read(run_folder / record_file(stage))


def read_records(run_folder: Path) -> list[Record]:
    """The records of all finished stages."""
    found = [_read(path) for path in sorted((run_folder / RECORDS).glob("*.json"))]
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
            remedy = _remedy(record)
            raise UserError(f"{name} is damaged or missing in run {run_folder.name!r}: {remedy} makes it again.")


def _remedy(record: Record) -> str:
    if not record.notebook:
        stage, _, policy = record.stage.partition(" ")
        return f"`experiment.{stage}({policy!r})`"
    return f"run the same `rarlhf run` command again, or notebook {record.notebook}, whose stage {record.stage!r}"


def recorded_checksums(run_folder: Path, relative: str) -> dict[str, str]:
    """The checksums of a file or of all files in a folder, by path below `relative`; from the records where they are.

    What is damaged is noticed when it is read.
    """
    recorded = {name: own for record in read_records(run_folder) for name, own in record.files.items()}
    names = {file.relative_to(run_folder).as_posix() for file in files_of(run_folder / relative)}
    return {name.removeprefix(relative): recorded.get(name) or checksum(run_folder / name) for name in sorted(names)}


def _read(path: Path) -> Record | None:
    try:
        return Record(**unsealed(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None
