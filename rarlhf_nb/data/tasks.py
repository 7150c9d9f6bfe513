"""The prompts of a task, cut from texts of the pocket world, of the paper's data sets or of the user's files."""

import hashlib
import json
import re
import reprlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from rarlhf_nb.conversations import (
    MESSAGES,
    Messages,
    Prompt,
    answered,
    check_messages,
    prompts_of,
    templated,
    transcript,
)
from rarlhf_nb.data.paper_data import COLUMNS, load_paper_texts
from rarlhf_nb.data.pocket import pocket_world, prompt_pairs
from rarlhf_nb.data.text_files import find_column, numbers_of, read_table, texts_of
from rarlhf_nb.errors import UserError
from rarlhf_nb.settings import TaskSettings

# a line break with the blanks around it, begun only at the first of these: else many blanks would take quadratic time
LINE_BREAK = re.compile(r"(?:(?<!\s)\s*|(?<=\s))<br\s*/?>\s*")
TEXT_COLUMNS = ["text", "label", "group"]
TRAIN_COLUMNS = ["prompt", "label", "group"]


@dataclass(frozen=True)
class Task:
    """The texts and prompts of a task, as tables with `label` (NA: unknown) and `group` ("all": no groups).

    train_texts, test_texts: whole texts, in a `text` column. train, test: prompts, in a `prompt` column. If they are
    conversations, each table has a column `messages` as well (see `conversations`), and whole texts end with an answer.
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

    def positive_texts(self, split: str, label: int) -> list[Prompt]:
        """The texts of the split with this label, or all texts if none has a label."""
        return prompts_of(self.positive_rows(split, label), "text")

    def positive_rows(self, split: str, label: int) -> pd.DataFrame:
        """The rows of `positive_texts`, with the columns of the text alone."""
        texts = self.train_texts if split == "train" else self.test_texts
        chosen = texts if texts["label"].isna().all() else texts[texts["label"] == label]
        if chosen.empty:
            raise UserError(f"task.positive_label = {label}: no text of the {split} split has it; choose another.")
        return chosen[[name for name in ("text", MESSAGES) if name in texts]].reset_index(drop=True)


def load_task(settings: TaskSettings, tokenizer: PreTrainedTokenizerBase) -> Task:
    """Read the texts (or write them, in the pocket world) and cut the prompts.

    With `train_toxic_share` (`test_toxic_share`), the split keeps only the texts whose prompts were chosen. Raises
    `UserError` for files and data sets with missing or wrong content.
    """
    texts, notes = _texts(settings)
    prompts = {}
    for split in ("train", "test"):
        if MESSAGES in texts[split]:
            texts[split], own_notes = _short_conversations(texts[split], tokenizer, settings, split)
            notes += own_notes
        prompts[split] = cut_prompts(texts[split], tokenizer, settings, split)
        if getattr(settings, f"{split}_toxic_share") is not None:
            texts[split] = texts[split].loc[prompts[split].index].reset_index(drop=True)
    train, test = (_columns(prompts[split], TRAIN_COLUMNS).reset_index(drop=True) for split in ("train", "test"))
    whole = (_columns(texts[split], TEXT_COLUMNS) for split in ("train", "test"))
    whole = (table[table["text"].notna()] if MESSAGES in table else table for table in whole)
    return Task(*whole, train, test, notes)


def _columns(table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """These columns of a table, and the conversations if there are any."""
    return table[[*names, MESSAGES] if MESSAGES in table else names]


def _short_conversations(
    texts: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, settings: TaskSettings, split: str
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The conversations of which the policy reads at most `prompt_length` tokens, and a note on the others.

    A conversation that was cut would end within a turn, or lose the beginning of its template.
    """
    read = [templated(prompt, tokenizer) for prompt in map(_before_the_answer, prompts_of(texts))]
    lengths = np.array([len(ids) for ids in tokenizer(read, add_special_tokens=False)["input_ids"]])
    kept = texts[lengths <= settings.prompt_length].reset_index(drop=True)
    what = f"task.{split}_file: {len(texts) - len(kept)} of {len(texts)} conversations"
    limit = f"more than task.prompt_length = {settings.prompt_length} tokens before the answer"
    if kept.empty:
        raise UserError(f"{what} have {limit}; raise it: the shortest has {lengths.min()}.")
    if kept["text"].isna().all():
        raise UserError(
            f"task.{split}_file: no conversation with a prompt of at most {settings.prompt_length} tokens ends with a "
            "turn of the assistant, so that SFT and perplexity have no text; add some, or raise task.prompt_length."
        )
    return kept, () if len(kept) == len(texts) else (f"{what} were left out, with {limit}",)


def _before_the_answer(messages: Messages) -> Messages:
    return messages[:-1] if answered(messages) else messages


def cut_prompts(
    texts: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, settings: TaskSettings, split: str
) -> pd.DataFrame:
    """The first `prompt_length` tokens of each text that is long enough, or of its `prompt` column if there is one.

    A prompt has fewer tokens if they would end within a character, or would be read as more than `prompt_length`. A
    conversation is whole, without the answer that it ends with.
    Returns at most `train_prompts` (`test_prompts`) different prompts with `label`, `group` and the index of their
    texts. If there are more, the same random choice is made for every seed.
    """
    if MESSAGES in texts:
        found = [*map(_before_the_answer, prompts_of(texts))]
        table = texts.assign(prompt=[*map(transcript, found)], messages=[*map(json.dumps, found)])
        return _drawn(table.drop_duplicates("prompt"), settings, split)
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
    return _drawn(table, settings, split)


def _drawn(table: pd.DataFrame, settings: TaskSettings, split: str) -> pd.DataFrame:
    """The random choice among the prompts in a table."""
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

    A text may be without a label, which is then NA. HTML line breaks become spaces. In place of `text`, a file may have
    conversations: `messages`, or `prompt` and an optional `completion`, all lists of messages. Of these, role and
    content are kept, in a column `messages`; `text` is NA if the last turn is not the assistant's. Raises a `UserError`
    that names `field`, the file and, if possible, the row.
    """
    what = f"{field} = '{path}'"
    table = read_table(path, what)
    text, label, group = (find_column(table, name, what) for name in TEXT_COLUMNS)
    conversations = _conversations(table, what) if text is None else None
    if text is None and conversations is None:
        raise UserError(f"{what} has no `text` column; it has: {', '.join(map(str, table.columns))}.")
    if conversations is not None:
        texts = pd.Series([transcript(each) if answered(each) else None for each in conversations], dtype=object)
    elif (texts := texts_of(text, what, "text")).isna().any():
        missing = texts.isna()
        raise UserError(f"{what}: row {int(missing.argmax()) + 1} has no `text`; {missing.sum()} such rows in all.")
    groups = pd.Series("all", table.index) if group is None else group.map(str).mask(group.isna(), "all")
    texts_of(groups, what, "group")
    labels = [None] * len(table) if label is None else numbers_of(label, what, "label", whole=True)
    labels = pd.array(labels, dtype="Int64")
    found = pd.DataFrame(
        {
            "text": texts if conversations else [LINE_BREAK.sub(" ", text) for text in texts],
            "label": labels if labels.isna().any() else labels.astype("int64"),
            "group": groups,
        }
    )
    return found.assign(messages=[*map(json.dumps, conversations)]) if conversations else found


def _conversations(table: pd.DataFrame, what: str) -> list[Messages] | None:
    """The conversations in a file; None if it has none. Raises `UserError` for one that is empty or damaged."""
    parts = {name: find_column(table, name, what) for name in (MESSAGES, "prompt", "completion")}
    first, second = (MESSAGES, None) if parts[MESSAGES] is not None else ("prompt", "completion")
    if parts[first] is None or (first == "prompt" and isinstance(parts[first].iloc[0], str)):
        return None
    found = []
    for row in range(len(table)):
        turns = []
        for name in filter(None, (first, second)):
            value = None if parts[name] is None else parts[name].iloc[row]
            if isinstance(value, list | np.ndarray):
                turns += [*value]
            elif name == first or not (value is None or value != value):
                raise UserError(f"{what}: row {row + 1} has `{name}` {reprlib.repr(value)}; give a list of messages.")
        check_messages(turns, f"{what}: row {row + 1}")
        if len(turns) == 1 and answered(turns):
            raise UserError(f"{what}: row {row + 1} has no turn before the assistant's; give the prompt as well.")
        found.append([{"role": each["role"], "content": each["content"]} for each in turns])
    return found
