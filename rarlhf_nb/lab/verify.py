"""`rarlhf verify`: repeat a run from its manifest, and compare what comes out to the last digit."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rarlhf_nb.errors import UserError
from rarlhf_nb.files import checksum, files_of
from rarlhf_nb.lab.artifacts import damaged_files, dumps_with_checksum, read_records, run_lock
from rarlhf_nb.lab.evaluation.tables import ALPHAS, HELD_OUT, SAMPLES
from rarlhf_nb.lab.experiment import Experiment
from rarlhf_nb.lab.runs import MANIFEST, READERS, Run, git_commit
from rarlhf_nb.lab.stages.training import training_stage
from rarlhf_nb.monitor import INCIDENTS
from rarlhf_nb.provenance import installed_versions

SCRATCH = ".verify"  # in the run folder, removed at the end


class Finding(NamedTuple):
    """What a comparison found: what was compared, whether it agrees, what differs, and whether it is a file."""

    what: str
    agrees: bool
    difference: str = ""
    file: bool = True


def verify(experiment: Experiment, iterations: int | None = None, say: Callable[[str], None] = print) -> list[Finding]:
    """Repeat the run and compare its logs, tables and weights; with `iterations` only the first ones of each training.

    Circumstances (versions, threads, commit) come last. They need not agree, but explain a difference. The run itself
    is only read. Raises `UserError` for a run of another version of the package, and if nothing was trained.
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
    with run_lock(run.folder):
        scratch = Run(run.path(SCRATCH))
        shutil.rmtree(scratch.folder, ignore_errors=True)
        scratch.folder.mkdir()
        try:
            scratch.write(MANIFEST, dumps_with_checksum(manifest | {"notebooks": {}}))
            again = Experiment(experiment.profile, scratch, experiment.seed)
            _repeat(again, run, iterations, say)
            found = sorted(_compare(run, scratch, iterations))
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


def _compare(run: Run, scratch: Run, iterations: int | None) -> Iterator[Finding]:
    """Compare the files that both have, of a kind that a repetition must share."""
    changed = {name for record in read_records(run.folder) for name in damaged_files(run.folder, record)}
    for path in files_of(scratch.folder):
        name = path.relative_to(scratch.folder).as_posix()
        if path.suffix in (".jsonl", ".parquet", ".safetensors") and run.path(name).exists():
            rows = iterations if path.parent.name == "training" else None
            difference = file_difference(run.path(name), path, rows)
            if difference and name in changed:
                difference += "; the file was changed after its stage had written it"
            yield Finding(name, not difference, difference)


def file_difference(path: Path, again: Path, rows: int | None = None) -> str:
    """The first row and column in which two logs or tables differ, or that two other files do; "" if nothing differs.

    rows: of a log, how many are compared. Its measured seconds do not count.
    """
    what = "weights" if path.suffix == ".safetensors" else "bytes"
    try:
        if path.suffix not in (".jsonl", ".parquet"):
            return "" if checksum(path) == checksum(again) else f"the {what} differ"
        old, new = (READERS[path.suffix](file)[:rows] for file in (path, again))
    except (ValueError, OSError) as error:
        return f"it cannot be read ({type(error).__name__})"
    old, new = (table.drop(columns=[name for name in table if "seconds" in name]) for table in (old, new))
    if len(old) != len(new) or set(old) != set(new):
        return f"{old.shape[0]} x {old.shape[1]} in the run, {new.shape[0]} x {new.shape[1]} now"
    new = new[list(old)]
    places = np.argwhere(~((old == new) | (old.isna() & new.isna())).to_numpy())
    if not len(places):
        return ""
    row, column = places[0]
    first, second = (f"{table.iat[row, column]}"[:60] for table in (old, new))
    return f"row {row + 1}, {old.columns[column]}: {first} in the run, {second} now"


def _circumstances(manifest: dict[str, Any]) -> Iterator[Finding]:
    here = installed_versions()
    for package, version in manifest["versions"].items():
        if here.get(package) != version:
            yield Finding(f"version of {package}", False, f"{version} in the run, {here.get(package)} now", False)
    commit = git_commit()
    if manifest.get("git_commit") != commit:
        yield Finding("commit", False, f"{manifest.get('git_commit')} in the run, {commit} now", False)
