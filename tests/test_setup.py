"""The set-up files agree: one lock, which the Makefile, environment.yml and CI share."""

import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import rarlhf_nb

REPOSITORY = Path(__file__).parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def read(name):
    return (REPOSITORY / name).read_text()


def locked():
    lines = [line for line in read("requirements.lock").splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[^\s;]+", line) for line in lines)
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def test_the_lock_holds_every_requirement_in_its_range_and_what_its_packages_require():
    versions, missing = locked(), []
    assert versions["torch"] == "2.13.0"
    assert not [name for name in versions if name.startswith("nvidia") or name == "triton"]
    wanted = PROJECT["dependencies"] + [r for extra in PROJECT["optional-dependencies"].values() for r in extra]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement
    for name in versions:
        for requirement in map(Requirement, requires(name) or []):
            wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if wanted and canonicalize_name(requirement.name) not in versions:
                missing.append(f"{name} needs {requirement}")
    assert missing == []


def test_make_conda_and_ci_share_the_lock():
    environment = yaml.safe_load(read("environment.yml"))
    assert set(environment) == {"name", "channels", "dependencies"}
    *conda, pip = environment["dependencies"]
    assert conda == ["python=3.11", "pip"] and pip == {"pip": ["-r requirements.lock", "-e ."]}
    assert "-r requirements.lock" in read("Makefile")
    assert "make test" in read(".ci/run") and "make lint" in read(".ci/run")
    assert "make newest-trl ||" in read(".ci/run")  # which may fail


def test_run_real_names_what_is_missing_before_it_sets_anything_up(tmp_path):
    command = ["make", "-f", str(REPOSITORY / "Makefile"), "run-real", f"TRAIN={REPOSITORY / 'Makefile'}"]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.returncode == 2 and "TRAIN or TEST = '' is no file" in answer.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_what_a_page_names_exists(page):
    text = read(page)
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), flags=re.M))
    assert set(re.findall(r"`?make ([a-z-]+)", text)) <= targets
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("https://") or (REPOSITORY / link).exists(), link
    for path in re.findall(r"`((?:rarlhf_nb|tests|notebooks|benchmarks|docs)/[\w./-]*)`", text):
        assert (REPOSITORY / path).exists(), path
    tests = "".join(path.read_text() for path in (REPOSITORY / "tests").glob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", text):
        assert f"def {name}(" in tests, name


def test_the_benchmarks_import_what_there_is():
    for path in (REPOSITORY / "benchmarks").glob("*.py"):
        if path.stem != "peer_iteration":  # which has an environment of its own
            importlib.import_module(f"benchmarks.{path.stem}")


def test_changelog_and_citation_name_this_version():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == rarlhf_nb.__version__ and citation["license"] == PROJECT["license"]
    assert re.search(r"^## (\S+)", read("CHANGELOG.md"), flags=re.M)[1] == rarlhf_nb.__version__


def test_the_wheel_holds_the_whole_application(tmp_path):
    """Without a checkout: every module, profile and notebook is inside, and the command finds them."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    source = tmp_path / "source"  # setuptools writes beside what it builds
    shutil.copytree(REPOSITORY, source, ignore=shutil.ignore_patterns(".*", "papermill_runs", "build", "__pycache__"))
    subprocess.run([*build, str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    package = [
        path for path in (REPOSITORY / "rarlhf_nb").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    assert {path.relative_to(REPOSITORY).as_posix() for path in package} <= inside
    assert {f"rarlhf_nb/lab/notebooks/{path.name}" for path in (REPOSITORY / "notebooks").glob("*.ipynb")} <= inside
    assert any(name.endswith("licenses/LICENSE") for name in inside)
    (tmp_path / "empty").mkdir()
    code = "from rarlhf_nb.lab.cli import entry; entry()"
    answer = subprocess.run(
        [sys.executable, "-c", code, "profiles"],
        cwd=tmp_path / "empty",
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "pocket-imdb" in answer.stdout, answer.stderr
