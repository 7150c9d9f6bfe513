"""Which prompts: texts of the pocket world or of the user's files, and what each stage makes of them."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from rarlhf_nb.errors import UserError
from rarlhf_nb.pocket import pocket_world
from rarlhf_nb.profiles import TaskSettings

READERS = {
    ".jsonl": lambda path: pd.read_json(path, lines=True),
    ".csv": pd.read_csv,
    ".parquet": pd.read_parquet,
}
UNKNOWN_LABEL = -1


@dataclass(frozen=True)
class Task:
    """A task's texts and prompts, each a table with `label` (-1 where unknown) and `group` ("all" where there is none).

    train_texts, test_texts: a `text` column, whole texts. train, test: a `prompt` column, TRL's format.
    """

    train_texts: pd.DataFrame
    test_texts: pd.DataFrame
    train: pd.DataFrame
    test: pd.DataFrame

    def fingerprint(self) -> str:
        """A name for the texts, whatever file they came in."""
        rows = [
            pd.util.hash_pandas_object(texts, index=False).to_numpy() for texts in (self.train_texts, self.test_texts)
        ]
        return hashlib.sha256(b"|".join(row.tobytes() for row in rows)).hexdigest()[:16]

    def positive_texts(self, split: str, label: int) -> list[str]:
        """The texts of the split with this label; all of them where no text has a label."""
        texts = self.train_texts if split == "train" else self.test_texts
        if (texts["label"] == UNKNOWN_LABEL).all():
            return texts["text"].tolist()
        chosen = texts.loc[texts["label"] == label, "text"].tolist()
        if not chosen:
            raise UserError(f"task.positive_label = {label}: no text of the {split} split has it; name another label.")
        return chosen


def load_task(settings: TaskSettings, tokenizer: PreTrainedTokenizerBase) -> Task:
    """Read or write the texts and cut the prompts. Raises `UserError` for files that do not hold what they should."""
    train_texts, test_texts = (_texts(settings, split) for split in ("train", "test"))
    return Task(
        train_texts,
        test_texts,
        train=cut_prompts(train_texts, tokenizer, settings, settings.train_prompts),
        test=cut_prompts(test_texts, tokenizer, settings, settings.test_prompts),
    )


def cut_prompts(
    texts: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, settings: TaskSettings, count: int
) -> pd.DataFrame:
    """The first `prompt_length` tokens of each text that is long enough: at most `count` different prompts.

    Columns prompt, label, group. Where there are more, a fixed random choice is taken, the same for every seed.
    """
    long_enough = texts[texts["text"].str.len() >= max(1, settings.minimum_characters)]
    ids = tokenizer(long_enough["text"].tolist(), add_special_tokens=False)["input_ids"]
    whole = [len(tokens) >= settings.prompt_length for tokens in ids]
    prompts = [tokenizer.decode(tokens[: settings.prompt_length]) for tokens, w in zip(ids, whole, strict=True) if w]
    table = long_enough.loc[whole, ["label", "group"]].assign(prompt=prompts).drop_duplicates("prompt")
    if table.empty:
        raise UserError(
            f"task.prompt_length = {settings.prompt_length} and task.minimum_characters = "
            f"{settings.minimum_characters} leave no prompt of {len(texts)} texts; lower them."
        )
    order = np.random.default_rng(0).permutation(len(table))[:count]
    return table.iloc[order][["prompt", "label", "group"]].reset_index(drop=True)


def _texts(settings: TaskSettings, split: str) -> pd.DataFrame:
    if settings.source == "files":
        return read_texts(Path(getattr(settings, f"{split}_file")), field=f"task.{split}_file")
    # half as many texts again as prompts: some texts share their first words
    count = (settings.train_prompts if split == "train" else settings.test_prompts) * 3 // 2
    texts = pocket_world(settings.source).texts(split, count)
    return pd.DataFrame([{"text": text.text, "label": text.label, "group": text.group} for text in texts])


def read_texts(path: Path, field: str) -> pd.DataFrame:
    """A JSONL, CSV or Parquet file with a `text` column and optional `label` and `group` columns.

    HTML line breaks become spaces. Raises `UserError` that names `field`, the file, and the row where there is one.
    """
    where = f"{field} = '{path}'"
    if path.suffix not in READERS:
        raise UserError(f"{where}: the ending must be one of {', '.join(READERS)}.")
    try:
        table = READERS[path.suffix](path)
    except (ValueError, OSError) as error:
        raise UserError(f"{where} cannot be read as {path.suffix[1:]}: {error}") from None
    if table.empty:
        raise UserError(f"{where} holds no rows.")
    if "text" not in table:
        raise UserError(f"{where} has no `text` column; it has: {', '.join(map(str, table.columns))}.")
    missing = table["text"].isna() | (table["text"].astype(str).str.strip() == "")
    if missing.any():
        raise UserError(f"{where}: row {int(missing.argmax()) + 1} has no `text`; {missing.sum()} such rows in all.")
    text = table["text"].astype(str).map(lambda text: re.sub(r"\s*<br\s*/?>\s*", " ", text))
    label = _labels(table["label"], where) if "label" in table else UNKNOWN_LABEL
    group = table["group"].astype(str) if "group" in table else "all"
    return pd.DataFrame({"text": text, "label": label, "group": group})


def _labels(column: pd.Series, where: str) -> pd.Series:
    numbers = pd.to_numeric(column, errors="coerce")
    if numbers.isna().any():
        row = int(numbers.isna().argmax())
        raise UserError(
            f"{where}: row {row + 1} has label {column.iloc[row]!r}; labels are whole numbers (1 positive)."
        )
    return numbers.astype(int)
