"""The house: a module imports from its own floor and from those below it, never from one above."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "rarlhf_nb"
FLOORS = [  # from the bottom; a module stands on the floor that names it most closely
    ["core.errors"],
    ["training.risk", "training.ppo"],  # the equations
    ["core"],
    ["worlds"],
    ["training"],
    ["baselines"],
    ["measuring"],
    ["showing"],
    ["running"],
]
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
PACKAGES = [name for name, path in MODULES.items() if path.name == "__init__.py" and name != "rarlhf_nb.worlds.pocket"]


def floor(module):
    matches = [
        (len(room), number)
        for number, rooms in enumerate(FLOORS)
        for room in rooms
        if f"{module}.".startswith(f"rarlhf_nb.{room}.")
    ]
    return max(matches)[1] if matches else len(FLOORS)  # the package itself stands on the roof


def imported(module):
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (
                f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in MODULES else node.module
                for alias in node.names
            )
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_no_import_runs_up():
    pairs = [(module, name) for module in MODULES for name in imported(module) if name.startswith("rarlhf_nb")]
    assert len(pairs) > 100
    assert [pair for pair in pairs if floor(pair[1]) > floor(pair[0])] == []


def test_no_baseline_knows_another():
    methods = {"rarlhf_nb.baselines.quark_math": "quark"}
    names = [module for module in MODULES if module.startswith("rarlhf_nb.baselines.")]
    for module in names:
        for name in imported(module):
            if name in names:
                assert methods.get(name, name.rpartition(".")[2]) in module


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_there(package):
    found = importlib.import_module(package)
    assert found.__doc__ and found.__all__
    assert all(getattr(found, name) is not None for name in found.__all__)
    assert set(found.__all__) <= set(dir(found))


def test_the_package_and_its_command_load_nothing_heavy():
    code = (
        "import sys, rarlhf_nb, rarlhf_nb.running.cli; sys.exit(' '.join({'torch', 'pandas'} & set(sys.modules)) or 0)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


def test_the_top_level_fits_a_glance():
    assert len([path for path in PACKAGE.iterdir() if path.name != "__pycache__"]) <= 8
