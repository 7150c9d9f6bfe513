"""The cache that keeps built models between runs; a model enters it whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """The folder of the project's cache: the environment variable `RARLHF_CACHE`, or else the user's cache folder."""
    return Path(os.environ.get("RARLHF_CACHE") or platformdirs.user_cache_dir("rarlhf_nb"))


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return `folder`, after building it with `build(empty_folder)` if it does not exist.

    The folder's name is its key, so it should hold a fingerprint of everything that it is built from. The build runs
    in a temporary folder beside it that gets the final name only when `build` has returned, so a half-built folder is
    never used. If two processes build at once, the first to finish wins and the other's result is discarded.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    workplace = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        build(workplace)
        workplace.chmod(0o755)  # mkdtemp makes it private, but others may share the cache
        os.rename(workplace, folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    return folder
