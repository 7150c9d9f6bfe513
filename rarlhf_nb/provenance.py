"""What a number depends on besides settings and seed: package versions and the commit."""

import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("rarlhf_nb", "torch", "transformers", "trl", "accelerate", "peft", "datasets", "papermill", "plotly")


def installed_versions() -> dict[str, str]:
    """The versions of the packages that a run's numbers may depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_commit() -> str | None:
    """The commit of the package, if it lies in a repository."""
    if shutil.which("git") is None:
        return None
    answer = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    )
    return answer.stdout.strip() or None
