"""The prompts of a task, cut from texts of the pocket world, of the paper's data sets or of the user's files."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from rarlhf_nb.data.paper_data import COLUMNS, load_paper_texts
from rarlhf_nb.data.pocket import pocket_world, prompt_pairs
from rarlhf_nb.data.text_files import find_column, numbers_of, read_table, texts_of
from rarlhf_nb.errors import UserError
from rarlhf_nb.settings import TaskSettings

# a line break with the blanks around it, begun only at the first of these: else many blanks would take quadratic time
LINE_BREAK = re.compile(r"(?:(?<!\s)\s*|(?<=\s))<br\s*/?>\s*")
TEXT_COLUMNS = ["text", "label", "group"]


@dataclass(frozen=True)
class Task:
    """The texts and prompts of a task, as tables with `label` (NA: unknown) and `group` ("all": no groups).

    train_texts, test_texts: whole texts, in a `text` column. train, test: prompts in TRL's format, a `prompt` column.
    notes: the rows that were dropped from a data set of the paper, and why; files without labels.
    """

    train_texts: pd.DataFrame
    test_texts: pd.DataFrame
    train: pd.DataFrame
    test: pd.DataFrame
    notes: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """A hash of the texts, independent of the file that they came from."""
        rows = [pd.util.hash_pandas_object(texts, index=False) for texts in (self.train_texts, self.test_texts)]
        return hashlib.sha256(b"|".join(hashes.to_numpy().tobytes() for hashes in rows)).hexdigest()[:16]

    def positive_texts(self, split: str, label: int) -> list[str]:
        """The texts of the split with this label, or all texts if none has a label."""
        texts = self.train_texts if split == "train" else self.test_texts
        if texts["label"].isna().all():
            return texts["text"].tolist()
        chosen = texts.loc[texts["label"] == label, "text"].tolist()
        if not chosen:
            raise UserError(f"task.positive_label = {label}: no text of the {split} split has it; choose another.")
        return chosen


def load_task(settings: TaskSettings, tokenizer: PreTrainedTokenizerBase) -> Task:
    """Read the texts (or write them, in the pocket world) and cut the prompts.

    With `train_toxic_share` (`test_toxic_share`), the split keeps only the texts whose prompts were chosen. Raises
    `UserError` for files and data sets with missing or wrong content.
    """
    texts, notes = _texts(settings)
    prompts = {}
    for split in ("train", "test"):
        prompts[split] = cut_prompts(texts[split], tokenizer, settings, split)
        if getattr(settings, f"{split}_toxic_share") is not None:
            texts[split] = texts[split].loc[prompts[split].index].reset_index(drop=True)
    columns = ["prompt", "label", "group"]
    train, test = (prompts[split][columns].reset_index(drop=True) for split in ("train", "test"))
    return Task(texts["train"][TEXT_COLUMNS], texts["test"][TEXT_COLUMNS], train, test, notes)


def cut_prompts(
    texts: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, settings: TaskSettings, split: str
) -> pd.DataFrame:
    """The first `prompt_length` tokens of each text that is long enough, or of its `prompt` column if there is one.

    A prompt has fewer tokens if they would end within a character, or would be read as more than `prompt_length`.
    Returns at most `train_prompts` (`test_prompts`) different prompts with `label`, `group` and the index of their
    texts. If there are more, the same random choice is made for every seed.
    """
    long_enough = texts[texts["text"].str.len() >= max(1, settings.minimum_characters)]
    sources = long_enough["prompt" if "prompt" in texts else "text"].tolist()
    ids = tokenizer(sources, add_special_tokens=False)["input_ids"] if sources else []
    fewest = 1 if settings.shorter_prompts else settings.prompt_length
    whole = [len(tokens) >= fewest for tokens in ids]
    ids = [tokens for tokens, is_whole in zip(ids, whole, strict=True) if is_whole]
    prompts = _cut(ids, tokenizer, settings.prompt_length)
    table = long_enough.loc[whole, ["label", "group"]].assign(prompt=prompts).drop_duplicates("prompt")
    table = table[table["prompt"] != ""]
    if table.empty:
        raise UserError(
            f"task.prompt_length = {settings.prompt_length} and task.minimum_characters = "
            f"{settings.minimum_characters} leave no prompt from {len(texts)} texts; lower them."
        )
    count = getattr(settings, f"{split}_prompts")
    generator = np.random.default_rng(0)
    if getattr(settings, f"{split}_toxic_share") is not None:
        return _with_toxic_share(table, settings, split, count, generator)
    return table.iloc[generator.permutation(len(table))[:count]]


def _cut(ids: list[list[int]], tokenizer: PreTrainedTokenizerBase, length: int) -> list[str]:
    """The longest beginning of each text that ends with a whole character and is read as `length` tokens at most."""
    prompts = [tokenizer.decode(tokens[:length]) for tokens in ids]
    read = tokenizer(prompts, add_special_tokens=False)["input_ids"] if prompts else []
    for place, tokens in enumerate(ids):
        end, again = length, read[place]
        # some four bytes make a character, and so some four tokens
        while end and (
            len(again) > length
            or prompts[place].endswith("\ufffd")
            and not tokenizer.decode(tokens[: end + 4]).startswith(prompts[place])
        ):
            end -= 1
            prompts[place] = tokenizer.decode(tokens[:end])
            again = tokenizer(prompts[place], add_special_tokens=False)["input_ids"]
    return prompts


def _with_toxic_share(
    table: pd.DataFrame, settings: TaskSettings, split: str, count: int, generator: np.random.Generator
) -> pd.DataFrame:
    """At most `count` prompts of which exactly the given share is toxic; fewer if a class has too few."""
    share = getattr(settings, f"{split}_toxic_share")
    clean = table["label"].isin([settings.positive_label])
    rows = {"toxic": np.flatnonzero(table["label"].notna() & ~clean), "non-toxic": np.flatnonzero(clean)}
    for kind, found in rows.items():
        if not len(found):
            raise UserError(
                f"task.{split}_toxic_share = {share}: none of {len(table)} prompts is {kind} "
                f"(task.positive_label = {settings.positive_label} is the label of prompts that are not toxic)."
            )
    toxic = min(round(count * share), len(rows["toxic"]), int(len(rows["non-toxic"]) * share / (1 - share) + 1e-9))
    clean = min(count - round(count * share), round(toxic * (1 - share) / share), len(rows["non-toxic"]))
    chosen = [generator.permutation(found)[:n] for found, n in zip(rows.values(), (toxic, clean), strict=True)]
    return table.iloc[generator.permutation(np.concatenate(chosen))]


def _texts(settings: TaskSettings) -> tuple[dict[str, pd.DataFrame], tuple[str, ...]]:
    """The texts of both splits, and notes on dropped rows."""
    if settings.source in COLUMNS:
        return load_paper_texts(settings)
    if settings.source == "files":
        fields = {split: f"{split}_file" for split in ("train", "test")}
        texts = {split: read_texts(Path(getattr(settings, name)), f"task.{name}") for split, name in fields.items()}
        without = [split for split, table in texts.items() if table["label"].isna().all()]
        note = "task.{}: no text has a `label`, so SFT and perplexity use all of them"
        return texts, tuple(note.format(fields[split]) for split in without)
    # 1.5 times as many texts as prompts, since some texts begin with the same words
    counts = {"train": settings.train_prompts * 3 // 2, "test": settings.test_prompts * 3 // 2}
    if settings.source != "pocket-rtp":
        world = pocket_world(settings.source)
        return {split: pd.DataFrame(world.texts(split, count))[TEXT_COLUMNS] for split, count in counts.items()}, ()
    pairs = {split: pd.DataFrame(prompt_pairs(split, count)) for split, count in counts.items()}
    for table in pairs.values():
        table["text"] = table["prompt"] + (table["continuation"] if settings.continuations else "")
        table["label"] = (table["toxicity"] > settings.toxicity_threshold).astype(int)
    return pairs, ()


def read_texts(path: Path, field: str) -> pd.DataFrame:
    """Read a JSON Lines, CSV or Parquet file with a `text` column and optional `label` and `group` columns.

    A text may be without a label, which is then NA. HTML line breaks become spaces. Raises a `UserError` that names
    `field`, the file and, if possible, the row.
    """
    what = f"{field} = '{path}'"
    table = read_table(path, what)
    text, label, group = (find_column(table, name, what) for name in TEXT_COLUMNS)
    if text is None:
        raise UserError(f"{what} has no `text` column; it has: {', '.join(map(str, table.columns))}.")
    texts = texts_of(text, what, "text")
    if texts.isna().any():
        missing = texts.isna()
        raise UserError(f"{what}: row {int(missing.argmax()) + 1} has no `text`; {missing.sum()} such rows in all.")
    groups = pd.Series("all", table.index) if group is None else group.map(str).mask(group.isna(), "all")
    texts_of(groups, what, "group")
    labels = [None] * len(table) if label is None else numbers_of(label, what, "label", whole=True)
    labels = pd.array(labels, dtype="Int64")
    return pd.DataFrame(
        {
            "text": [LINE_BREAK.sub(" ", text) for text in texts],
            "label": labels if labels.isna().any() else labels.astype("int64"),
            "group": groups,
        }
    )
