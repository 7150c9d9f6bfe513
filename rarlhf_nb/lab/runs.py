"""The folder that holds the results of a run: its manifest, atomic writes, and reads that notice damage.

`papermill_runs/<run>/` is the contract between the notebooks; this module does not know what the files hold. The runs
of a sweep lie together in a folder of its own, `papermill_runs/<sweep>/<run>/`.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow

from rarlhf_nb.errors import UserError, first_line
from rarlhf_nb.files import checksum, files_of, written_whole
from rarlhf_nb.lab.artifacts import (
    RECORDS,
    SWEEP,
    Record,
    check_files,
    dumps_with_checksum,
    loads_with_checksum,
    record_file,
)
from rarlhf_nb.provenance import installed_versions
from rarlhf_nb.settings import flat

MANIFEST = "manifest.json"
ADDS = "sweep"  # the section of the settings that adds methods to a run and changes none
LONGEST_NAME = 120
NOTEBOOKS = "[0-9][0-9]_*.ipynb"


@dataclass(frozen=True)
class Run:
    """A run folder that belongs to one set of settings and one seed."""

    folder: Path

    @classmethod
    def open(cls, name: str, settings: dict[str, Any], seed: int, root: Path | None = None) -> "Run":
        """Begin the run `name`, or reopen it.

        settings: the resolved profile, as JSON. Raises `UserError` for a name that cannot be a folder name, and for a
        folder that belongs to other settings or another seed; such a folder is left untouched. Only the section `sweep`
        may differ.
        """
        check_name(name)
        run = cls((root or default_root()) / name)
        if "/" in name and not run.sweep:
            raise UserError(
                f"run = {name!r}: there is no sweep {name.split('/')[0]!r} beside the runs; leave out the /."
            )
        if (run.folder / SWEEP).exists():
            raise UserError(f"run = {name!r} is a sweep: name one of its runs, {name}/..., or choose another name.")
        if (run.folder / MANIFEST).exists():
            run._check_belongs(settings, seed)
            if run.manifest["settings"] != settings:
                run.note(settings=settings)
        else:
            run.begin(settings, seed)
        return run

    def begin(self, settings: dict[str, Any], seed: int) -> None:
        """Write the manifest of a new folder."""
        more = {"versions": installed_versions(), "git_commit": git_commit(), "notebooks": {}}
        self.write(MANIFEST, dumps_with_checksum({"settings": settings, "seed": seed} | more))

    def _check_belongs(self, settings: dict[str, Any], seed: int) -> None:
        asked = {"settings": settings, "seed": seed}
        stored, wanted = flat({key: self.manifest[key] for key in asked}), flat(asked)
        different = [
            f"{key.removeprefix('settings.')} is {stored.get(key)!r} in the folder, {wanted.get(key)!r} now"
            for key in sorted(stored.keys() | wanted.keys())
            if stored.get(key) != wanted.get(key) and not key.startswith(f"settings.{ADDS}.")
        ]
        if different:
            raise UserError(
                f"run = {self.folder.name!r}{self.other_version()} belongs to other parameters: "
                f"{'; '.join(different)}. Choose another run name, or delete the folder."
            )

    def other_version(self) -> str:
        """For messages: the version of the package that began the run, if it is not this one; otherwise nothing."""
        made_with, here = (versions["rarlhf_nb"] for versions in (self.manifest["versions"], installed_versions()))
        return "" if made_with == here else f" of rarlhf_nb {made_with} (this is {here})"

    @property
    def name(self) -> str:
        """The name that opens the run: its folder's, after the sweep's if it belongs to one."""
        return f"{self.folder.parent.name}/{self.folder.name}" if self.sweep else self.folder.name

    @property
    def sweep(self) -> Path | None:
        """The folder of the sweep that the run belongs to."""
        return self.folder.parent if (self.folder.parent / SWEEP).exists() else None

    @property
    def manifest(self) -> dict[str, Any]:
        """The current content of manifest.json. Raises `UserError` if it is damaged."""
        try:
            return loads_with_checksum((self.folder / MANIFEST).read_text())
        except ValueError:
            raise UserError(
                f"{MANIFEST} of run {self.folder.name!r} is damaged: delete that file and run the same `rarlhf run` "
                "command again, which keeps all that is finished."
            ) from None

    def note_notebook(self, notebook: str, **entry: Any) -> None:
        """Set the manifest's entry for a notebook (state, seconds, fingerprint)."""
        self.note(notebooks=self.manifest["notebooks"] | {notebook: entry})

    def note(self, **entries: Any) -> None:
        """Set entries of the manifest, such as `threads`."""
        self.write(MANIFEST, dumps_with_checksum(self.manifest | entries))

    def record(self, writes: Sequence[str], **entries: Any) -> Record:
        """Record a finished stage. writes: its files, and folders of files. entries: the rest of its `Record`."""
        inner = [path for place in writes for path in files_of(self.folder / place)]
        files = {path.relative_to(self.folder).as_posix(): checksum(path) for path in inner}
        record = Record(writes=list(writes), files=files, versions=installed_versions(), **entries)
        self.write(record_file(record.stage), dumps_with_checksum(record._asdict()))
        return record

    def forget(self) -> None:
        """Drop every record and checkpoint, so that all stages begin anew."""
        shutil.rmtree(self.path(RECORDS), ignore_errors=True)
        for checkpoints in self.folder.rglob("*.checkpoints"):
            shutil.rmtree(checkpoints)

    def path(self, *parts: str) -> Path:
        """A path in the run folder."""
        return self.folder.joinpath(*parts)

    def require(self, relative: str, made_by: str) -> Path:
        """The path of an earlier notebook's file or folder, whole.

        Raises `UserError` with that notebook's name if it is missing or damaged.
        """
        path = self.folder / relative
        if not path.exists():
            raise UserError(f"{relative} is missing in run {self.folder.name!r}: run notebook {made_by} first.")
        check_files(self.folder, relative)
        return path

    def read(self, relative: str) -> Any:
        """The content of a file: a table of .parquet, one row per line of .jsonl, JSON of .json, otherwise the text.

        A last line of .jsonl that is still being written is left out. Raises `UserError` for a damaged file.
        """
        check_files(self.folder, relative)
        path = self.folder / relative
        try:
            return READERS.get(path.suffix, Path.read_text)(path)
        except (ValueError, OSError, pyarrow.ArrowException) as error:
            raise UserError(
                f"{relative} of run {self.folder.name!r} cannot be read ({first_line(error)}): delete it, and run the "
                "notebook that makes it again."
            ) from error

    def write(self, relative: str, content: Any) -> Path:
        """Write a file whole or not at all: a table as Parquet, text as it is, anything else as JSON."""
        target = self.folder / relative
        with written_whole(target) as file:
            if isinstance(content, pd.DataFrame):
                content.to_parquet(file, index=False)
            else:
                file.write_text(content if isinstance(content, str) else json.dumps(content, indent=2) + "\n")
        return target

    @contextmanager
    def new_folder(self, relative: str) -> Iterator[Path]:
        """An empty folder for the block to fill, which then takes the place of an earlier one; whole or not at all."""
        with written_whole(self.folder / relative) as folder:
            folder.mkdir()
            yield folder


def _read_rows(path: Path) -> pd.DataFrame:
    return pd.DataFrame(map(json.loads, path.read_text().rpartition("\n")[0].splitlines()))


READERS: dict[str, Callable[[Path], Any]] = {
    ".parquet": pd.read_parquet,
    ".jsonl": _read_rows,
    ".json": lambda path: json.loads(path.read_text()),
}


def check_name(name: str) -> None:
    """Raise `UserError` if `name` cannot be that of a run; a run of a sweep is named <sweep>/<run>."""
    parts = name.split("/")
    if (
        len(parts) > 2
        or not all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.@-]*", part) for part in parts)
        or (max(map(len, parts)) > LONGEST_NAME)
    ):
        raise UserError(
            f"run = {name!r}: a run's name starts with a letter or digit, holds only letters, digits and _ . @ -, "
            f"and has at most {LONGEST_NAME} characters; a run of a sweep is named SWEEP/RUN; choose another."
        )


def checkout(folder: Path | None = None) -> Path | None:
    """The checkout of the project, known by its `notebooks/`, or None if there is none.

    It is `folder` (by default the current one), the nearest folder above it, or the one that holds this package.
    """
    here = folder or Path.cwd()
    for place in (here, *here.parents, Path(__file__).parents[2]):
        if any((place / "notebooks").glob(NOTEBOOKS)):
            return place
    return None


def default_root() -> Path:
    """`papermill_runs/` in the checkout, or in the current folder if there is no checkout."""
    return (checkout() or Path.cwd()) / "papermill_runs"


def git_commit() -> str | None:
    """The commit of the package, if it lies in a repository."""
    if shutil.which("git") is None:
        return None
    answer = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    )
    return answer.stdout.strip() or None
