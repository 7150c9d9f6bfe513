"""Other people's generations as episodes: a CSV with one prompt per row and each method's response and reward."""

import reprlib
from pathlib import Path

import numpy as np
import pandas as pd

from rarlhf_nb.data.text_files import read_table
from rarlhf_nb.errors import UserError


def read_generations(path: str | Path, columns: dict[str, tuple[str, str]] | None = None) -> dict[str, pd.DataFrame]:
    """Reads the published evaluation format as one episodes table per method, for `build_report` and the figures.

    The file has the columns `query` and `prompt_score`, and for each method a column of responses and one of rewards.
    columns: method -> (response column, reward column); by default every pair `<method>_response`, `<method>_reward`
    is a method. Such files hold no KL, so the report leaves it out.

    Raises `UserError` if the file cannot be read, a column is missing, or a value is not a finite number.
    """
    source = f"generations = '{path}'"
    table = read_table(Path(path), source, kind="csv")
    if columns is None:
        methods = [name.removesuffix("_response") for name in table.columns if name.endswith("_response")]
        columns = {name: (f"{name}_response", f"{name}_reward") for name in methods if name}
    needed = ["query", "prompt_score", *(name for pair in columns.values() for name in pair)]
    missing = [name for name in needed if name not in table]
    if missing or not columns:
        what = f"the column {missing[0]!r}" if missing else "a pair of columns <method>_response, <method>_reward"
        raise UserError(f"{source} lacks {what}; it has: {', '.join(map(str, table.columns))}.")
    for name in ["prompt_score", *(reward for _, reward in columns.values())]:
        given, table[name] = table[name], pd.to_numeric(table[name], errors="coerce")
        wrong = ~np.isfinite(table[name])
        if wrong.any():
            row = int(wrong.argmax())
            value = reprlib.repr(given.iloc[row])
            raise UserError(f"{source}: {name} = {value} in data row {row + 1} is not a number: correct it.")
    common = pd.DataFrame({"prompt": table["query"].fillna(""), "prompt_score": table["prompt_score"]})
    return {
        method: common.assign(
            completion=table[response].fillna(""), reward=table[reward], label=pd.NA, group="all", seed=0
        )
        for method, (response, reward) in columns.items()
    }
