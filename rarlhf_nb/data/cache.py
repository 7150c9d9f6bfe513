"""The cache that keeps built models between runs; a model enters it whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path

import platformdirs

from rarlhf_nb.files import written_whole


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
