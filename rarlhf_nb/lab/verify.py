"""`rarlhf verify`: repeat a run from its manifest, and compare what comes out to the last digit."""

import json
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from rarlhf_nb.errors import UserError
from rarlhf_nb.files import checksum, files_of, sealed
from rarlhf_nb.lab.evaluation.tables import ALPHAS, HELD_OUT, SAMPLES
from rarlhf_nb.lab.experiment import Experiment
from rarlhf_nb.lab.lock import held
from rarlhf_nb.lab.records import damaged_files, read_records
from rarlhf_nb.lab.runs import MANIFEST, Run, git_commit
from rarlhf_nb.lab.stages import training_stage
from rarlhf_nb.monitor import INCIDENTS
from rarlhf_nb.provenance import installed_versions

SCRATCH = ".verify"  # in the run folder, removed at the end
TIMES = {"seconds"}  # the one thing that a repetition need not share


class Finding(NamedTuple):
    """What a comparison found: what was compared, whether it agrees, what differs, and whether it is a file."""

    what: str
    agrees: bool
    difference: str = ""
    file: bool = True


def verify(experiment: Experiment, iterations: int | None = None, say: Callable[[str], None] = print) -> list[Finding]:
    """Repeat the run and compare its logs, tables and weights; with `iterations` only the first ones of each training.

    Circumstances (versions, threads, commit) come last. They need not agree, but explain a difference. The run itself
    is only read. Raises `UserError` for a run of another version of the package, and where nothing was trained.
    """
    run, manifest = experiment.run, experiment.run.manifest
    made_with, here = manifest["versions"]["rarlhf_nb"], installed_versions()["rarlhf_nb"]
    if made_with != here:
        raise UserError(
            f"run = {run.name!r} was made with rarlhf_nb {made_with}, and this is {here}: install "
            "that version to repeat it."
        )
    if not run.path("training").exists():
        raise UserError(f"run = {run.name!r} has no training yet: run it first.")
    with held(run):
        scratch = Run(run.path(SCRATCH))
        shutil.rmtree(scratch.folder, ignore_errors=True)
        scratch.folder.mkdir()
        try:
            scratch.write_text(MANIFEST, sealed(manifest | {"notebooks": {}}))
            _repeat(Experiment(experiment.profile, scratch, experiment.seed), run, iterations, say)
            compared = sorted(_comparable(run, scratch))
            found = [_compare(run, scratch, name, iterations) for name in compared]
        finally:
            shutil.rmtree(scratch.folder, ignore_errors=True)
    return found + list(_circumstances(manifest))


def _repeat(again: Experiment, run: Run, iterations: int | None, say: Callable[[str], None]) -> None:
    """Repeat every stage that the run has finished."""
    say("data")
    again.prepare_data()
    say("sft")
    again.train_sft()
    logs = [path for path in sorted(run.path("training").glob("*.jsonl")) if not path.name.endswith(INCIDENTS)]
    for method in (path.stem for path in logs):
        say(f"train {method}")
        if iterations is None:
            again.train(method)
        else:
            training_stage(again, method).do(iterations=iterations)
    if iterations is not None:
        return
    if run.path("policies/prompted").exists():
        again.choose_prefix()
    if run.path("policies/dexperts").exists():
        again.train_experts()
    for path in sorted(run.path("evaluation").glob("[!.]*.parquet")):
        if not path.name.endswith((HELD_OUT, SAMPLES)):
            method = path.name.removesuffix(ALPHAS).removesuffix(".parquet")
            say(f"evaluate {method}")
            again.evaluate(method)


def _comparable(run: Run, scratch: Run) -> Iterator[str]:
    """The files that both have, of a kind that a repetition must share."""
    for path in files_of(scratch.folder):
        name = path.relative_to(scratch.folder).as_posix()
        if path.suffix in (".jsonl", ".parquet", ".safetensors") and run.path(name).exists():
            yield name


def _compare(run: Run, scratch: Run, name: str, iterations: int | None) -> Finding:
    try:
        difference = COMPARISONS[Path(name).suffix](run.path(name), scratch.path(name), iterations)
    except (ValueError, OSError) as error:
        difference = f"it cannot be read ({type(error).__name__})"
    changed = any(name in damaged_files(run.folder, record) for record in read_records(run.folder))
    if difference and changed:
        difference += "; the file was changed after its stage had written it"
    return Finding(name, not difference, difference)


def _rows_difference(path: Path, again: Path, iterations: int | None) -> str:
    """The first row and key in which two logs differ, up to `iterations` rows of a training."""
    limit = iterations if path.parent.name == "training" else None
    old, new = (list(islice(map(json.loads, file.read_text().splitlines()), limit)) for file in (path, again))
    for number, (first, second) in enumerate(zip(old, new, strict=False), start=1):
        for key in sorted((first.keys() | second.keys()) - TIMES):
            if repr(first.get(key)) != repr(second.get(key)):
                return f"row {number}, {key}: {first.get(key)} in the run, {second.get(key)} now"
    return "" if len(old) == len(new) else f"{len(old)} rows in the run, {len(new)} now"


def _table_difference(path: Path, again: Path, iterations: int | None) -> str:
    old, new = pd.read_parquet(path), pd.read_parquet(again)
    if old.shape != new.shape or list(old) != list(new):
        return f"{old.shape[0]} x {old.shape[1]} in the run, {new.shape[0]} x {new.shape[1]} now"
    for column in old:
        same = (old[column] == new[column]) | (old[column].isna() & new[column].isna())
        if not same.all():
            row = int((~same).to_numpy().argmax())
            return f"{(~same).sum()} of {len(old)} rows differ in {column}; row {row}: {_short(old, row, column, new)}"
    return ""


def _short(old: pd.DataFrame, row: int, column: str, new: pd.DataFrame) -> str:
    first, second = (repr(table[column].iloc[row])[:60] for table in (old, new))
    return f"{first} in the run, {second} now"


def _weights_difference(path: Path, again: Path, iterations: int | None) -> str:
    return "" if checksum(path) == checksum(again) else "the weights differ"


COMPARISONS: dict[str, Callable[[Path, Path, int | None], str]] = {
    ".jsonl": _rows_difference,
    ".parquet": _table_difference,
    ".safetensors": _weights_difference,
}


def _circumstances(manifest: dict[str, Any]) -> Iterator[Finding]:
    here = installed_versions()
    for package, version in manifest["versions"].items():
        if here.get(package) != version:
            yield Finding(f"version of {package}", False, f"{version} in the run, {here.get(package)} now", False)
    commit = git_commit()
    if manifest.get("git_commit") != commit:
        yield Finding("commit", False, f"{manifest.get('git_commit')} in the run, {commit} now", False)
