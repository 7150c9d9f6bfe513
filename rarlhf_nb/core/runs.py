"""The folder that holds the results of a run: its manifest, and atomic writes.

`papermill_runs/<run>/` is the contract between the floors; this module does not know what the files hold.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from rarlhf_nb.core.errors import UserError

PACKAGES = ("rarlhf_nb", "torch", "transformers", "trl", "accelerate", "peft", "datasets", "papermill", "plotly")
MANIFEST = "manifest.json"
LONGEST_NAME = 120


@dataclass(frozen=True)
class Run:
    """A run folder that belongs to one set of settings and one seed."""

    folder: Path

    @classmethod
    def open(cls, name: str, settings: dict[str, Any], seed: int, root: Path | None = None) -> "Run":
        """Begin the run `name`, or reopen it.

        settings: the resolved profile, as JSON. Raises `UserError` for a name that cannot be a folder name, and for a
        folder that belongs to other settings or another seed; such a folder is left untouched.
        """
        check_name(name)
        run = cls((root or default_root()) / name)
        asked = {"settings": settings, "seed": seed}
        if (run.folder / MANIFEST).exists():
            run._check_belongs(asked)
        else:
            run.folder.mkdir(parents=True, exist_ok=True)
            run.write_json(MANIFEST, asked | {"versions": _versions(), "git_commit": _git_commit(), "notebooks": {}})
        return run

    def _check_belongs(self, asked: dict[str, Any]) -> None:
        stored, wanted = _flat({key: self.manifest[key] for key in asked}), _flat(asked)
        different = [
            f"{key.removeprefix('settings.')} is {stored.get(key)!r} in the folder, {wanted.get(key)!r} now"
            for key in sorted(stored.keys() | wanted.keys())
            if stored.get(key) != wanted.get(key)
        ]
        if different:
            raise UserError(
                f"run = {self.folder.name!r} belongs to other parameters: {'; '.join(different)}. "
                "Choose another run name, or delete the folder."
            )

    @property
    def manifest(self) -> dict[str, Any]:
        """The current content of manifest.json."""
        return json.loads((self.folder / MANIFEST).read_text())

    def note_notebook(self, notebook: str, **entry: Any) -> None:
        """Set the manifest's entry for a notebook (state, seconds, fingerprint)."""
        self.note(notebooks=self.manifest["notebooks"] | {notebook: entry})

    def note(self, **entries: Any) -> None:
        """Set entries of the manifest, such as `data_fingerprint`."""
        self.write_json(MANIFEST, self.manifest | entries)

    def path(self, *parts: str) -> Path:
        """A path in the run folder."""
        return self.folder.joinpath(*parts)

    def require(self, relative: str, made_by: str) -> Path:
        """The path of an earlier notebook's result; if it is missing, raises `UserError` with that notebook's name."""
        path = self.folder / relative
        if not path.exists():
            raise UserError(f"{relative} is missing in run {self.folder.name!r}: run notebook {made_by} first.")
        return path

    def write_json(self, relative: str, content: Any) -> Path:
        """Write JSON, whole or not at all."""
        return self._write(relative, lambda path: path.write_text(json.dumps(content, indent=2) + "\n"))

    def write_text(self, relative: str, content: str) -> Path:
        """Write text, whole or not at all."""
        return self._write(relative, lambda path: path.write_text(content))

    def write_table(self, relative: str, table: pd.DataFrame) -> Path:
        """Write a Parquet file, whole or not at all."""
        return self._write(relative, lambda path: table.to_parquet(path, index=False))

    def _write(self, relative: str, write: Callable[[Path], Any]) -> Path:
        target = self.folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.close(handle)
        try:
            write(Path(name))
            os.chmod(name, 0o644)
            os.replace(name, target)
        finally:
            Path(name).unlink(missing_ok=True)
        return target


def check_name(name: str) -> None:
    """Raise `UserError` where `name` cannot be that of a run."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.@-]*", name) or len(name) > LONGEST_NAME:
        raise UserError(
            f"run = {name!r}: a run's name starts with a letter or digit, holds only letters, digits and _ . @ -, and "
            f"has at most {LONGEST_NAME} characters; choose another."
        )


def repository() -> Path:
    """The folder that holds `notebooks/`: the current one, the nearest above it, or the one beside the package.

    Raises `UserError` where none of them does.
    """
    beside = Path(__file__).parents[2]
    for folder in (Path.cwd(), *Path.cwd().parents, beside):
        if any((folder / "notebooks").glob("[0-9][0-9]_*.ipynb")):
            return folder
    raise UserError("there is no notebooks/ folder here: run from a checkout of the project.")


def default_root() -> Path:
    """`papermill_runs/` beside `notebooks/`."""
    return repository() / "papermill_runs"


def _flat(nested: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(nested, dict):
        return {prefix: nested}
    return {k: v for key, value in nested.items() for k, v in _flat(value, f"{prefix}.{key}".strip(".")).items()}


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _git_commit() -> str | None:
    if shutil.which("git") is None:
        return None
    answer = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    )
    return answer.stdout.strip() or None
