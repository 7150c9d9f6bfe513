"""Files that are written whole or not at all, their checksums, and the cache that keeps what was built."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import platformdirs


@contextmanager
def written_whole(target: Path, replace: bool = True) -> Iterator[Path]:
    """A path beside `target` at which the block makes a file or a folder; only then it becomes `target`.

    So nobody ever sees half of it, and an error in the block leaves what was there before. Without `replace`, raises
    `OSError` if `target` is by then a folder that holds anything.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as workplace:
        new = Path(workplace) / target.name
        yield new
        for path in [*new.rglob("*"), new]:
            _flush(path)
        if replace and target.is_dir():
            target.rename(Path(workplace) / ".before")
        os.replace(new, target)
        _flush(target.parent)


def _flush(path: Path) -> None:
    """Wait until a file or folder is on the disk: after a power cut, what took the place of the old is whole."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checksum(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_of(place: Path) -> list[Path]:
    """A file, or all files in a folder, sorted; hidden ones, which are still being written, are left out."""
    if place.is_file():
        return [place]
    inside = (path for path in place.rglob("*") if path.is_file())
    return sorted(path for path in inside if not any(part.startswith(".") for part in path.relative_to(place).parts))


def json_lines(rows: Iterable[dict[str, Any]]) -> str:
    """One JSON object per line, from which `Run.read_rows` reads the same numbers."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def cache_folder() -> Path:
    """The folder of the project's cache: the environment variable `RARLHF_CACHE`, or else the user's cache folder."""
    return Path(os.environ.get("RARLHF_CACHE") or platformdirs.user_cache_dir("rarlhf_nb"))


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return `folder`, after building it with `build(empty_folder)` if it does not exist.

    The folder's name is its key, so it should hold a fingerprint of everything that it is built from. A half-built
    folder is never used. If two processes build at once, the first to finish wins.
    """
    if folder.is_dir():
        return folder
    try:
        with written_whole(folder, replace=False) as new:
            new.mkdir()
            build(new)
    except OSError:
        if not folder.is_dir():
            raise
    return folder
