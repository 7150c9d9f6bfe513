"""Tables in local files, JSON, CSV or Parquet, with every value as it stands in the file."""

import io
import json
import math
import reprlib
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rarlhf_nb.errors import UserError, first_line

LARGEST_NUMBER = 2**53  # a float holds every whole number up to it


def read_table(path: Path, what: str, kind: str | None = None) -> pd.DataFrame:
    """The rows of a file. In a CSV every value is text, so that "007" and "NA" stay what they are, and "" is missing.

    what: the file as the user named it, for the errors. kind: "jsonl", "csv", "parquet" or "json"; by default, the
    path's ending, before that of a zip archive with one file.

    Raises `UserError` for a file that is of another kind or damaged, that holds no rows, or in which two columns have
    one name.
    """
    kind = kind or Path(path.name.removesuffix(".zip")).suffix.removeprefix(".")
    if kind not in READERS:
        raise UserError(f"{what}: the ending must be one of {', '.join(f'.{name}' for name in READERS)}.")
    try:
        table = READERS[kind](path)
    except (ValueError, OSError, RecursionError, pa.ArrowException, zipfile.BadZipFile) as error:
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


def find_column(table: pd.DataFrame, name: str, what: str) -> pd.Series | None:
    """The column of this name or, without one, that whose name differs in case, blanks and a plural's s alone.

    None if there is neither. Raises `UserError` if several differ so.
    """
    near = [column for column in table if str(column).strip().casefold().removesuffix("s") == name.removesuffix("s")]
    near = [name] if name in near else near
    if len(near) > 1:
        raise UserError(f"{what} has no column {name!r}, but {' and '.join(map(repr, near))}: rename one to {name!r}.")
    return table[near[0]].astype(object) if near else None


def texts_of(column: pd.Series, what: str, name: str) -> pd.Series:
    """The values of a column as texts; None for one that is missing or blank. Raises `UserError` for anything else."""
    missing = column.isna() | column.map(lambda text: isinstance(text, str) and not text.strip())
    for row, (value, no_text) in enumerate(zip(column, missing, strict=True), start=1):
        if not (no_text or is_text(value)):
            raise UserError(f"{what}: row {row} has `{name}` {reprlib.repr(value)}, which is not Unicode text.")
    return column.where(~missing, None)


def numbers_of(column: pd.Series, what: str, name: str, whole: bool = False) -> list[float | None]:
    """The values of a column as finite numbers, if need be whole ones; None for one that is missing.

    1, 1.0, True, "1", "1.0" and "true" are the same. Raises `UserError` for anything else.
    """
    numbers = []
    for row, (value, missing) in enumerate(zip(column, column.isna(), strict=True), start=1):
        try:
            number = None if missing else float({"true": 1, "false": 0}.get(str(value).strip().lower(), value))
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        is_whole = missing or (number.is_integer() and abs(number) <= LARGEST_NUMBER)
        if not (missing or math.isfinite(number)) or (whole and not is_whole):
            wanted = "a whole number (1 positive)" if whole else "a number"
            raise UserError(f"{what}: row {row} has {name} {reprlib.repr(value)}; give {wanted}.")
        numbers.append(number)
    return numbers


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
    options = {"header": None, "dtype": str, "keep_default_na": False, "na_values": [""], "low_memory": False}
    try:
        cells = pd.read_csv(io.StringIO(_text(path)), **options)
    except pd.errors.ParserError as error:
        raise ValueError(f"{first_line(error).rpartition(': ')[2]} (a text with commas needs quotes)") from None
    table = cells.iloc[1:].reset_index(drop=True)
    return table.set_axis(cells.iloc[0].fillna("").tolist(), axis=1)


def _read_parquet(path: Path) -> pd.DataFrame:
    with path.open("rb") as file:  # given a path, pyarrow would read a folder as well
        return pq.read_table(file).to_pandas(ignore_metadata=True)


def _text(path: Path) -> str:
    content = path.read_bytes()  # read_text would change the line ends within texts
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            if len(archive.namelist()) != 1:
                raise ValueError("the archive does not hold one file alone: unpack it")
            content = archive.read(archive.namelist()[0])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} is not UTF-8 (Windows-1252, or UTF-16?): save the file as UTF-8") from None


READERS = {"jsonl": _read_json, "csv": _read_csv, "parquet": _read_parquet, "json": _read_json}
