"""The versions of the packages that a run's numbers may depend on."""

from importlib.metadata import PackageNotFoundError, version

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
