"""A sweep on the disk: a folder with its grid, one run folder per cell, and what all of them share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rarlhf_nb.errors import UserError
from rarlhf_nb.files import sealed, unsealed
from rarlhf_nb.lab.artifacts import SWEEP
from rarlhf_nb.lab.grid import Cell, Grid, to_json
from rarlhf_nb.lab.methods import (
    ANALYSIS_NOTEBOOK,
    BASELINES_NOTEBOOK,
    DATA_NOTEBOOK,
    EXPLORER_NOTEBOOK,
    RISK_NOTEBOOK,
    SFT_NOTEBOOK,
)
from rarlhf_nb.lab.runs import MANIFEST, Run, check_name, default_root
from rarlhf_nb.provenance import installed_versions

FAILURE = "failure.json"  # in a cell's folder: where and why it failed
CELL_NOTEBOOKS = [DATA_NOTEBOOK, SFT_NOTEBOOK, RISK_NOTEBOOK, BASELINES_NOTEBOOK]
SWEEP_NOTEBOOKS = [ANALYSIS_NOTEBOOK, EXPLORER_NOTEBOOK]  # which run once, on the whole sweep


@dataclass(frozen=True)
class Sweep:
    """A grid and its folder, which is a run folder too: it holds the notebooks and the report of the whole sweep."""

    folder: Path
    grid: Grid

    @classmethod
    def open(cls, name: str, grid: Grid, root: Path | None = None) -> "Sweep":
        """Begin the sweep `name`, or reopen it; it may grow by further α, seeds and values.

        Raises `UserError` for a name that is taken by a run or by another grid, which is left untouched.
        """
        check_name(name)
        if "/" in name:
            raise UserError(f"sweep = {name!r}: a sweep lies beside the runs; leave out the /.")
        folder = (root or default_root()) / name
        if (folder / MANIFEST).exists() and not (folder / SWEEP).exists():
            raise UserError(f"sweep = {name!r} is the name of a run; choose another.")
        if (folder / SWEEP).exists():
            earlier = cls.reopen(name, root).grid
            if not grid.extends(earlier):
                raise UserError(
                    f"sweep = {name!r} belongs to other parameters: {_described(earlier)} in the folder, "
                    f"{_described(grid)} now. A sweep may only grow. Choose another name, or delete the folder."
                )
        folder.mkdir(parents=True, exist_ok=True)
        run = Run(folder)
        run.write(SWEEP, sealed(to_json(grid)))
        if not run.path(MANIFEST).exists():
            settings = grid.settings(grid.cells()[0]).model_dump(mode="json")
            content = {"settings": settings, "seed": grid.seeds[0], "versions": installed_versions(), "notebooks": {}}
            run.write(MANIFEST, sealed(content))
        return cls(folder, grid)

    @classmethod
    def reopen(cls, name: str, root: Path | None = None) -> "Sweep":
        """Open an existing sweep. Raises `UserError` where there is none, and where its grid is damaged."""
        check_name(name)
        folder = (root or default_root()) / name
        try:
            return cls(folder, Grid(**unsealed((folder / SWEEP).read_text())))
        except FileNotFoundError:
            raise UserError(f"sweep = {name!r}: there is no such sweep.") from None
        except (ValueError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{SWEEP} of sweep {name!r} is damaged: delete that file and run the same `rarlhf sweep` command "
                "again, which keeps all that is finished."
            ) from None

    @property
    def run(self) -> Run:
        """The sweep's own folder as a run folder."""
        return Run(self.folder)

    def cell_run(self, cell: Cell) -> Run:
        """The run folder of a cell, whether or not it has been begun."""
        return Run(self.folder / cell.name)

    def failure(self, cell: Cell) -> dict[str, Any] | None:
        """Where and why a cell failed last: notebook, cell of the notebook, error and time; None if it did not."""
        path = self.cell_run(cell).path(FAILURE)
        try:
            return unsealed(path.read_text()) if path.exists() else None
        except ValueError:
            return {"notebook": "?", "cell": None, "error": f"{FAILURE} is damaged", "time": "?"}


def seconds_of_a_run(profile: str, root: Path | None = None) -> float | None:
    """How long the notebooks of a cell took in a finished run of the profile, if there is one here."""
    for manifest in sorted((root or default_root()).glob(f"**/{MANIFEST}")):
        try:
            content = Run(manifest.parent).manifest
        except UserError:
            continue
        done = [content["notebooks"].get(name, {}) for name in CELL_NOTEBOOKS]
        if content["settings"]["name"] == profile and all(entry.get("state") == "done" for entry in done):
            return sum(entry["seconds"] for entry in done)
    return None


def _described(grid: Grid) -> str:
    alphas = ",".join(f"{alpha:g}" for alpha in grid.alphas)
    settings = "".join(f", {key} {values}" for key, values in (grid.fixed | grid.free).items())
    return f"profile {grid.profile}, α {alphas}, seeds {','.join(map(str, grid.seeds))}{settings}"
