"""Tables in the user's files, JSONL, CSV or Parquet, with every value as it stands in the file."""

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rarlhf_nb.errors import UserError, first_line


def read_table(path: Path, kind: str, where: str) -> pd.DataFrame:
    """The rows of a file. In a CSV every value is text, so that "007" and "NA" stay what they are, and "" is missing.

    kind: "jsonl", "csv" or "parquet". where: what an error calls the file. Raises `UserError` for a file that is of
    another kind or damaged, that holds no rows, or in which two columns have one name.
    """
    try:
        table = READERS[kind](path)
    except (ValueError, OSError, RecursionError, pa.ArrowException) as error:
        raise UserError(f"{where} cannot be read as {kind}: {first_line(error)}") from None
    repeated = [name for name, count in Counter(table.columns).items() if name and count > 1]
    if repeated:
        raise UserError(f"{where} has two columns {repeated[0]!r}: rename or remove one.")
    if table.empty:
        raise UserError(f"{where} holds no rows.")
    return table


def _read_jsonl(path: Path) -> pd.DataFrame:
    rows = []
    for number, line in enumerate(_text(path).split("\n"), start=1):  # splitlines would cut a text at U+2028
        if line.strip():
            rows.append(_row(line, number))
    return pd.DataFrame(rows, dtype=object)


def _row(line: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number} is not JSON ({error.msg}): is the file cut off?") from None
    if not isinstance(row, dict):
        raise ValueError(f'line {number} is not an object like {{"text": ...}}')
    return row


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


READERS = {"jsonl": _read_jsonl, "csv": _read_csv, "parquet": _read_parquet}
