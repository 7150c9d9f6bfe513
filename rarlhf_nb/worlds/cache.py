"""Where built models are kept between runs, and how they get there whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """The project's cache: the environment variable `RARLHF_CACHE`, or the user's cache folder."""
    return Path(os.environ.get("RARLHF_CACHE") or platformdirs.user_cache_dir("rarlhf_nb"))


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """`folder`, built by `build(empty_folder)` if it is not there yet.

    The folder's name is its key: put a fingerprint of whatever it is built from into it. A build happens in
    a temporary neighbour that takes the final name only when `build` has returned, so a half-built folder
    is never used. Of two processes that build at once the first to finish wins; the other keeps nothing.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    workplace = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        build(workplace)
        workplace.chmod(0o755)  # mkdtemp makes it private, which would shut out others who share a cache
        os.rename(workplace, folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    return folder
