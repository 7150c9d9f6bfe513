"""The paper's data sets IMDB, Jigsaw and RealToxicityPrompts, from the hub or from local files in its format.

Each becomes two tables of texts, train and test, with a `label` and a `group`. Only data files are read; no code of a
repository is run.
"""

from dataclasses import dataclass
from pathlib import Path

import datasets
import pandas as pd

from rarlhf_nb.data.text_files import find_column, numbers_of, read_table, texts_of
from rarlhf_nb.errors import UserError, first_line
from rarlhf_nb.hub import snapshot
from rarlhf_nb.seeding import library_seed
from rarlhf_nb.settings import TaskSettings

DATA = ["*.parquet", "*.csv", "*.json", "*.jsonl"]
PATTERNS = [*DATA, "README.md"]  # the README assigns files to splits


@dataclass(frozen=True)
class Columns:
    """The names of a data set's text and label columns; of several label columns, the first that exists is read."""

    text: str
    labels: tuple[str, ...]
    kind: str  # the meaning of label 1


COLUMNS = {
    "imdb": Columns("text", ("label",), "positive"),
    "jigsaw": Columns("comment_text", ("toxic", "label"), "toxic"),  # in Kaggle's set and in the balanced set
    "rtp": Columns("prompt.text", ("prompt.toxicity",), "toxic"),
}


def load_paper_texts(settings: TaskSettings) -> tuple[dict[str, pd.DataFrame], tuple[str, ...]]:
    """The texts of `settings.dataset` that are long enough, without duplicates, and notes on the rows dropped.

    The splits train and test have `text`, `label`, `group` and, for RealToxicityPrompts, `prompt`. If the data set has
    no test split, `test_share` of each class becomes the test split.

    Raises:
        UserError: the data set cannot be found or read, lacks a column, or has a class without usable texts.
    """
    what = f"task.dataset = {settings.dataset!r}"
    notes: list[str] = []
    splits = {}
    for split, table in _read(settings, what, notes).items():
        what_split = f"{what}, split {split}"
        splits[split] = _usable(_columns(table, settings, what_split), settings, what_split, notes)
        _check_classes(splits[split], settings, what_split, notes)
    if "test" not in splits:
        splits["train"], splits["test"] = split_by_class(splits["train"], settings.test_share, settings.split_seed)
        _check_classes(splits["test"], settings, f"{what}, task.test_share = {settings.test_share} of it", notes)
    return splits, tuple(notes)


def split_by_class(texts: pd.DataFrame, test_share: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split into train and test: of the texts with each label, a share of `test_share` (rounded) is drawn for test."""
    test = texts.groupby("label").sample(frac=test_share, random_state=library_seed(seed)).sort_index()
    return texts.drop(test.index).reset_index(drop=True), test.reset_index(drop=True)


# Reading


def _read(settings: TaskSettings, what: str, notes: list[str]) -> dict[str, pd.DataFrame]:
    """The splits train and, if it exists, test; nested columns get dotted names. `notes` names files left out."""
    path = Path(settings.dataset).expanduser()
    if not path.exists():
        path = snapshot(settings.dataset, what, "dataset", PATTERNS, needed=DATA, revision=settings.dataset_revision)
    try:
        # it says which file belongs to which split, but its readers lose, split and convert values
        files = {"train": [path]} if path.is_file() else datasets.load_dataset_builder(str(path)).config.data_files
    except (datasets.exceptions.DatasetsError, ValueError, OSError) as error:
        raise UserError(f"{what} cannot be read: {first_line(error)}") from None
    if "train" not in files:
        raise UserError(f"{what} has no split `train`; it has: {', '.join(files)}.")
    read = {Path(file).resolve() for split in files.values() for file in split}
    others = sorted(file.name for kind in DATA for file in path.rglob(kind) if file.resolve() not in read)
    if others:  # of files with several endings, datasets 5.2 takes the most frequent one, without a word
        notes.append(f"{what}: not read, since no split has them: {', '.join(others)}")
    return {name: _joined(list(map(Path, files[name])), what) for name in ("train", "test") if name in files}


def _joined(paths: list[Path], what: str) -> pd.DataFrame:
    """The rows of several files; Kaggle's test.csv and test_labels.csv are one table, joined by `id`."""
    tables = [read_table(path, f"{what}, {path.name}" if len(paths) > 1 else what) for path in paths]
    if len(tables) == 2 and set(tables[0]) & set(tables[1]) == {"id"}:
        tables = [tables[0].merge(tables[1], on="id")]
    table = pd.concat(tables, ignore_index=True)
    for name in list(table):
        keys = {key: None for value in table[name] if isinstance(value, dict) for key in value}
        for key in keys:
            table[f"{name}.{key}"] = [value.get(key) if isinstance(value, dict) else None for value in table[name]]
        table = table.drop(columns=[name] if keys else [])
    return table


# From columns to texts and labels


def _columns(table: pd.DataFrame, settings: TaskSettings, what: str) -> pd.DataFrame:
    """The columns text, label (NaN if it is missing), group and, for RealToxicityPrompts, prompt."""
    columns, found = COLUMNS[settings.source], {}
    for name in (columns.text, *columns.labels, "continuation.text", "challenging"):
        found[name] = find_column(table, name, what)
    label = next((name for name in columns.labels if found[name] is not None), None)
    needed = [columns.text, *(["continuation.text"] if settings.continuations and settings.source == "rtp" else [])]
    missing = [*(name for name in needed if found[name] is None), *([] if label else [" or ".join(columns.labels)])]
    if missing:
        raise UserError(f"{what} has no column {', '.join(missing)}; it has: {', '.join(map(str, table.columns))}.")
    numbers = pd.Series(numbers_of(found[label], what, label), table.index, dtype=float)
    text = texts_of(found[columns.text], what, columns.text)
    texts = pd.DataFrame({"text": text, "label": numbers.where(numbers.isin([0, 1])), "group": "all"})
    if settings.source == "rtp":
        texts["prompt"] = texts["text"]
        texts["label"] = (numbers > settings.toxicity_threshold).astype(float).where(numbers.notna())
        if settings.continuations:
            texts["text"] = texts["prompt"] + texts_of(found["continuation.text"], what, "continuation.text")
        if found["challenging"] is not None:
            challenging = found["challenging"].map(str).str.lower().isin(["true", "1"])
            texts["group"] = texts["group"].mask(challenging, "challenging")
    return texts


def _usable(table: pd.DataFrame, settings: TaskSettings, what: str, notes: list[str]) -> pd.DataFrame:
    """The rows with a text, a label and enough characters, without duplicates; `notes` records what was dropped."""
    least = settings.minimum_characters
    label = "score (null)" if settings.source == "rtp" else "label 0 or 1"
    steps = {
        "without a text": lambda rows: rows["text"].notna(),
        f"without a {label}": lambda rows: rows["label"].notna(),
        f"of fewer than {least} characters": lambda rows: rows["text"].str.len() >= least,
        "that repeat an earlier text": lambda rows: ~rows["text"].duplicated(),
    }
    for reason, is_good in steps.items():
        good = table[is_good(table).astype(bool)]
        if len(good) < len(table):
            notes.append(f"{what}: {len(table) - len(good):,} rows {reason} dropped, {len(good):,} left")
        table = good
    texts = {name: str for name in ("text", "prompt") if name in table}
    return table.astype({**texts, "label": int}).reset_index(drop=True)


def _check_classes(table: pd.DataFrame, settings: TaskSettings, what: str, notes: list[str]) -> None:
    kind = COLUMNS[settings.source].kind
    for label, name in ((1, kind), (0, f"not {kind}")):
        if not (table["label"] == label).any():
            said = "".join(f"; {note}" for note in notes)
            raise UserError(f"{what}: no text that is {name} (label {label}) is left of {len(table)}{said}.")
