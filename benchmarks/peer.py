"""The peer's environment: TRL 0.11.4 and libraries of its time, made once in the project's cache."""

import hashlib
import platform
import subprocess
import sys
from pathlib import Path

from rarlhf_nb.files import build_once, cache_folder

PEER = "TRL 0.11.4"
REQUIREMENTS = (
    "trl==0.11.4",
    "transformers==4.45.2",
    "numpy>=2",
    "datasets<4",
    "pyarrow<20",
    "accelerate<1.2",
    "rich",
    "peft",
    "torch==2.13.0",
)


def peer_folder() -> Path:
    """Where the environment lies; its name says what is in it."""
    key = hashlib.sha256(" ".join([platform.python_version(), *REQUIREMENTS]).encode()).hexdigest()
    return cache_folder() / "peer" / key[:12]


def peer_python() -> Path:
    """The environment's interpreter, which exists once `set_up_peer` has run."""
    return peer_folder() / "bin" / "python"


def set_up_peer() -> Path:
    """The folder of the environment, made on the first call."""
    return build_once(peer_folder(), _build)


def _build(folder: Path) -> None:
    print(f"setting up {PEER}, once; some minutes", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *REQUIREMENTS], check=True)
