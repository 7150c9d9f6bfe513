"""Tables in local files, JSON, CSV or Parquet, with every value as it stands in the file."""

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rarlhf_nb.errors import UserError, first_line


def read_table(path: Path, what: str, kind: str | None = None) -> pd.DataFrame:
    """The rows of a file. In a CSV every value is text, so that "007" and "NA" stay what they are, and "" is missing.

    what: the file as the user named it, for the errors. kind: "jsonl", "csv", "parquet" or "json"; by default, the
    path's ending.

    Raises `UserError` for a file that is of another kind or damaged, that holds no rows, or in which two columns have
    one name.
    """
    kind = kind or path.suffix.removeprefix(".")
    if kind not in READERS:
        raise UserError(f"{what}: the ending must be one of {', '.join(f'.{name}' for name in READERS)}.")
    try:
        table = READERS[kind](path)
    except (ValueError, OSError, RecursionError, pa.ArrowException) as error:
        raise UserError(f"{what} cannot be read as {kind}: {first_line(error)}") from None
    repeated = [name for name, count in Counter(table.columns).items() if name and count > 1]
    if repeated:
        raise UserError(f"{what} has two columns {repeated[0]!r}: rename or remove one.")
    if table.empty:
        raise UserError(f"{what} holds no rows.")
    return table


def is_text(value: Any) -> bool:
    """Whether a value is a string of whole characters."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:  # half of a surrogate pair, as left by a cut through an emoji
        return False


def _read_json(path: Path) -> pd.DataFrame:
    """One object per line, or one array of objects."""
    text, rows, place = _text(path), {}, "item"
    if text.lstrip().startswith("["):
        rows = dict(enumerate(json.loads(text), start=1))
    else:
        place = "line"
        for number, line in enumerate(text.split("\n"), start=1):  # splitlines would cut a text at U+2028
            try:
                rows |= {number: json.loads(line)} if line.strip() else {}
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} is not JSON ({error.msg}): is the file cut off?") from None
    wrong = [number for number, row in rows.items() if not isinstance(row, dict)]
    if wrong:
        raise ValueError(f'{place} {wrong[0]} is not an object like {{"text": ...}}')
    return pd.DataFrame(list(rows.values()), dtype=object)


def _read_csv(path: Path) -> pd.DataFrame:
    # Read as a row, the header has pandas refuse every longer row; otherwise it would take the first column of a file
    # with unquoted commas for an index.
    cells = pd.read_csv(
        io.StringIO(_text(path)), header=None, dtype=str, keep_default_na=False, na_values=[""], low_memory=False
    )
    table = cells.iloc[1:].reset_index(drop=True)
    return table.set_axis(cells.iloc[0].fillna("").tolist(), axis=1)


def _read_parquet(path: Path) -> pd.DataFrame:
    with path.open("rb") as file:  # given a path, pyarrow would read a folder as well
        return pq.read_table(file).to_pandas(ignore_metadata=True)


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8-sig")  # read_text would change the line ends within texts


READERS = {"jsonl": _read_json, "csv": _read_csv, "parquet": _read_parquet, "json": _read_json}
