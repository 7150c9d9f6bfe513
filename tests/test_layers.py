"""Two storeys: the library, and the lab on top of it. No import runs up, and none runs in a circle."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "rarlhf_nb"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imported(module):
    """The modules of this package that a module names in any import, also those inside functions."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from {name if name in MODULES else node.module for name in names} & MODULES.keys()
        elif isinstance(node, ast.Import):
            yield from {alias.name for alias in node.names} & MODULES.keys()


def test_the_library_never_imports_the_lab():
    library = [name for name in MODULES if not name.startswith("rarlhf_nb.lab")]
    pairs = [(module, name) for module in library for name in imported(module)]
    assert len(pairs) > 50
    assert [pair for pair in pairs if pair[1].startswith("rarlhf_nb.lab")] == []


def test_the_equations_stand_alone():
    assert set(imported("rarlhf_nb.risk")) | set(imported("rarlhf_nb.ppo")) <= {"rarlhf_nb.errors"}


def test_no_import_runs_in_a_circle():
    TopologicalSorter({module: set(imported(module)) for module in MODULES}).prepare()  # raises CycleError


def test_no_baseline_knows_another():
    parts = {"critic_free": "grpo"}
    home = {name: parts.get(name.rpartition(".")[2], name.rpartition(".")[2]) for name in MODULES}
    baselines = [name for name in MODULES if name.startswith("rarlhf_nb.baselines.")]
    pairs = [(home[module], home[name]) for module in baselines for name in imported(module) if name in baselines]
    assert [pair for pair in pairs if pair[0] != pair[1]] == []


def test_every_module_says_what_it_is():
    assert [name for name, path in MODULES.items() if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_the_package_and_its_command_load_nothing_heavy():
    code = "import sys, rarlhf_nb, rarlhf_nb.lab.cli; sys.exit(' '.join({'torch', 'pandas'} & set(sys.modules)) or 0)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
