"""The paper's data sets IMDB, Jigsaw and RealToxicityPrompts, from the hub or from local files in its format.

Each becomes two tables of texts, train and test, with a `label` and a `group`. Only data files are read; no code of a
repository is run.
"""

from dataclasses import dataclass
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa

from rarlhf_nb.data.text_files import is_text, read_table
from rarlhf_nb.errors import UserError
from rarlhf_nb.hub import snapshot
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
    for split, table in _read(settings, what).items():
        what_split = f"{what}, split {split}"
        splits[split] = _usable(_columns(table, settings, what_split), settings, what_split, notes)
        _check_classes(splits[split], settings, what_split, notes)
    if "test" not in splits:
        splits["train"], splits["test"] = split_by_class(splits["train"], settings.test_share, settings.split_seed)
        _check_classes(splits["test"], settings, f"{what}, task.test_share = {settings.test_share} of it", notes)
    return splits, tuple(notes)


def split_by_class(texts: pd.DataFrame, test_share: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split into train and test: of the texts with each label, a share of `test_share` (rounded) is drawn for test."""
    test = texts.groupby("label").sample(frac=test_share, random_state=seed).sort_index()
    return texts.drop(test.index).reset_index(drop=True), test.reset_index(drop=True)


# Reading


def _read(settings: TaskSettings, what: str) -> dict[str, pd.DataFrame]:
    """The splits train and, if it exists, test; nested columns get dotted names."""
    path = Path(settings.dataset).expanduser()
    if not path.exists():
        path = snapshot(settings.dataset, what, "dataset", PATTERNS, needed=DATA, revision=settings.dataset_revision)
    table = read_table(path, what) if path.is_file() else None
    try:
        loaded = datasets.load_dataset(str(path)) if table is None else {"train": datasets.Dataset.from_pandas(table)}
    except (datasets.exceptions.DatasetsError, pa.ArrowException, ValueError, OverflowError, OSError) as error:
        # the library's outer error names only its cache; the reason is in the cause
        reason = " ".join(str(error.__cause__ or error).split())[:300] or type(error).__name__
        raise UserError(f"{what} cannot be read: {reason}") from None
    splits = {name: loaded[name].flatten().to_pandas() for name in ("train", "test") if name in loaded}
    if "train" not in splits:
        raise UserError(f"{what} has no split `train`; it has: {', '.join(loaded)}.")
    return splits


# From columns to texts and labels


def _columns(table: pd.DataFrame, settings: TaskSettings, what: str) -> pd.DataFrame:
    """The columns text, label (NaN if it is missing), group and, for RealToxicityPrompts, prompt."""
    columns = COLUMNS[settings.source]
    label = next((name for name in columns.labels if name in table), None)
    missing = [*([] if columns.text in table else [columns.text]), *([] if label else [" or ".join(columns.labels)])]
    if settings.continuations and settings.source == "rtp" and "continuation.text" not in table:
        missing.append("continuation.text")
    if missing:
        raise UserError(f"{what} has no column {', '.join(missing)}; it has: {', '.join(map(str, table.columns))}.")
    numbers = pd.to_numeric(table[label], errors="coerce")
    words = numbers.isna() & table[label].notna()
    if words.any():
        row = int(words.argmax())
        raise UserError(f"{what}: row {row + 1} has {label} {table[label].iloc[row]!r}; it must be a number.")
    texts = pd.DataFrame({"text": table[columns.text], "label": numbers.where(numbers.isin([0, 1])), "group": "all"})
    if settings.source == "rtp":
        texts["prompt"] = texts["text"]
        texts["label"] = (numbers > settings.toxicity_threshold).astype(float).where(numbers.notna())
        if settings.continuations:
            texts["text"] = texts["prompt"] + table["continuation.text"]
        if "challenging" in table:
            challenging = table["challenging"].map(str).str.lower().isin(["true", "1"])
            texts["group"] = texts["group"].mask(challenging, "challenging")
    return texts


def _usable(table: pd.DataFrame, settings: TaskSettings, what: str, notes: list[str]) -> pd.DataFrame:
    """The rows with a text, a label and enough characters, without duplicates; `notes` records what was dropped."""
    least = settings.minimum_characters
    label = "score (null)" if settings.source == "rtp" else "label 0 or 1"
    steps = {
        "without a text": lambda rows: rows["text"].map(lambda text: is_text(text) and text.strip() != ""),
        f"without a {label}": lambda rows: rows["label"].notna(),
        f"of fewer than {least} characters": lambda rows: rows["text"].str.len() >= least,
        "that repeat an earlier text": lambda rows: ~rows["text"].duplicated(),
    }
    table = table.astype({"text": object})
    for reason, is_good in steps.items():
        good = table[is_good(table).astype(bool)]
        if len(good) < len(table):
            notes.append(f"{what}: {len(table) - len(good):,} rows {reason} dropped, {len(good):,} left")
        table = good
    return table.astype({"text": str, "label": int}).reset_index(drop=True)


def _check_classes(table: pd.DataFrame, settings: TaskSettings, what: str, notes: list[str]) -> None:
    kind = COLUMNS[settings.source].kind
    for label, name in ((1, kind), (0, f"not {kind}")):
        if not (table["label"] == label).any():
            said = "".join(f"; {note}" for note in notes)
            raise UserError(f"{what}: no text that is {name} (label {label}) is left of {len(table)}{said}.")
