"""What determines the outputs of a notebook, as a hash: when it changes, the notebook runs again."""

import hashlib
import json
from pathlib import Path
from typing import Any

import nbformat
from IPython.core.inputtransformer2 import TransformerManager

from rarlhf_nb.sources import code_of, imported_files


def fingerprint(notebook: Path, parameters: dict[str, Any], digests: list[str], past: str) -> str:
    """A hash of everything that determines the outputs of a notebook.

    digests: what tells the content of the data and models apart from others. past: the fingerprint of the notebook
    before this one.
    """
    code = "\n".join(cell.source for cell in cells(notebook))
    parts = [past, code, json.dumps(parameters, sort_keys=True, default=str), *digests]
    parts += [code_of(path) for path in imported_modules(notebook)]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def imported_modules(notebook: Path) -> list[Path]:
    """The files of this package that the notebook imports, directly or indirectly, sorted."""
    python = TransformerManager().transform_cell  # turns magics and shell lines into Python
    return imported_files(python(cell.source) for cell in cells(notebook) if cell.cell_type == "code")


def cells(notebook: Path) -> list[nbformat.NotebookNode]:
    """The cells of a notebook."""
    return nbformat.read(notebook, as_version=4).cells
