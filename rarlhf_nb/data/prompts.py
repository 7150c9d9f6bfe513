"""The prompts that a trainer is given: checked, and as a `Dataset`."""

import reprlib
from typing import Any

import pandas as pd
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from rarlhf_nb.conversations import check_messages, templated
from rarlhf_nb.data.text_files import is_text
from rarlhf_nb.errors import UserError
from rarlhf_nb.rewards import ARGUMENTS


def prompt_dataset(data: Any, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """The training prompts of a `Dataset`, a pandas table or a list of dictionaries.

    Raises `UserError` for anything else, without rows, without a `prompt` column, with a prompt that is neither a
    text nor a conversation or has no tokens, and with a column that has the name of an argument of the rewards.
    """
    if isinstance(data, pd.DataFrame):
        data = Dataset.from_pandas(data, preserve_index=False)
    elif isinstance(data, list) and data and all(isinstance(row, dict) for row in data):
        columns = dict.fromkeys(key for row in data for key in row)  # datasets 5.2 takes those of the first row alone
        data = Dataset.from_dict({key: [row.get(key) for row in data] for key in columns})
    if not isinstance(data, Dataset):
        raise UserError(f"train_dataset is a {type(data).__name__}; give a Dataset with a `prompt` column.")
    if "prompt" not in data.column_names:
        raise UserError(f"train_dataset has no `prompt` column; it has: {', '.join(data.column_names) or 'none'}.")
    if not len(data):
        raise UserError("train_dataset holds no rows; give at least one prompt.")
    taken = sorted(ARGUMENTS.intersection(data.column_names))
    if taken:
        raise UserError(
            f"train_dataset has a column {taken[0]!r}, but the rewards get an argument of this name; rename the column."
        )
    for row, prompt in enumerate(data["prompt"], start=1):
        if isinstance(prompt, list):
            check_messages(prompt, f"train_dataset: the prompt of row {row}")
            templated(prompt, tokenizer)
        elif not is_text(prompt):
            raise UserError(
                f"train_dataset: row {row} has the prompt {reprlib.repr(prompt)}, which is neither a text nor a list "
                "of messages."
            )
        elif not prompt.strip() and not tokenizer(prompt)["input_ids"]:
            raise UserError(f"train_dataset: row {row} has the prompt {prompt!r}, which has no tokens; remove it.")
    return data
