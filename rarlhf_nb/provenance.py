"""The versions of the packages that a run's numbers may depend on."""

from importlib.metadata import version

from rarlhf_nb import __version__

PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets", "papermill", "plotly")


def installed_versions() -> dict[str, str]:
    """This package's version, and those of the packages that a run's numbers may depend on."""
    return {"rarlhf_nb": __version__} | {package: version(package) for package in PACKAGES}
