"""Prompts are cut from texts, the paper's data sets become texts, and files that do not fit are named."""

import json
from types import SimpleNamespace

import datasets
import pandas as pd
import pytest
from huggingface_hub import constants
from paper_world import byte_level_tokenizer, kaggle_table, prompts_rows, write_imdb, write_jigsaw, write_prompts
from tiny import tiny_tokenizer

from rarlhf_nb.data.paper_data import load_paper_texts
from rarlhf_nb.data.pocket import build
from rarlhf_nb.data.pocket.grammar import TALK_PAGES, vocabulary
from rarlhf_nb.data.tasks import cut_prompts, load_task, read_texts
from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.profiles import load_profile
from rarlhf_nb.settings import TaskSettings

TEXTS = ["the film is good good", "the plot was bad bad", "the film is good bad", "film", "bad<br><br>plot is the film"]
ROWS = pd.DataFrame({"text": TEXTS, "label": [1, 0, 1, 1, 0]})
WRITERS = {
    "jsonl": lambda rows, path: rows.to_json(path, orient="records", lines=True),
    "json": lambda rows, path: rows.to_json(path, orient="records", indent=1),
    "csv": lambda rows, path: rows.to_csv(path),
    "parquet": lambda rows, path: rows.to_parquet(path),
}


def task_settings(path, **changes):
    """A task whose train and test texts are in this file."""
    fields = {"name": "imdb-gen", "source": "files", "prompt_length": 3, "train_prompts": 10, "test_prompts": 2}
    fields |= {"minimum_characters": 0, "tail_threshold": 0.0, "train_file": str(path), "test_file": str(path)}
    return TaskSettings(**fields | changes)


def load_rows(rows, folder, ending="csv", **changes):
    """The task whose train and test file hold these rows."""
    path = folder / f"texts.{ending}"
    WRITERS[ending](rows, path)
    return load_task(task_settings(path, **changes), tiny_tokenizer())


@pytest.mark.parametrize("ending", WRITERS)
def test_prompts_are_the_first_tokens_of_each_long_enough_text(tmp_path, ending):
    task = load_rows(ROWS, tmp_path, ending)
    # one text is too short, two share their first three words
    assert sorted(task.train["prompt"]) == ["bad plot is", "the film is", "the plot was"]
    assert set(task.train["group"]) == {"all"} and len(task.test) == 2
    assert task.positive_texts("train", 1) == ROWS.loc[ROWS["label"] == 1, "text"].tolist()
    assert load_rows(ROWS, tmp_path, ending).train.equals(task.train)
    # the fingerprint depends on the texts, not on the file
    assert (
        load_rows(ROWS, tmp_path).fingerprint() == task.fingerprint() != load_rows(ROWS[::-1], tmp_path).fingerprint()
    )


def test_a_shorter_text_is_a_prompt_if_the_settings_say_so_and_texts_without_labels_are_all_positive(tmp_path):
    task = load_rows(ROWS[["text"]], tmp_path, prompt_length=4, shorter_prompts=True)
    assert {"film", "the film is good"} <= set(task.train["prompt"])
    assert task.train["label"].isna().all() and len(task.positive_texts("test", 1)) == 5
    assert ["no text has a `label`" in note for note in task.notes] == [True, True]


def test_a_prompt_ends_with_a_whole_character_and_has_no_more_tokens_than_it_may(tmp_path):
    tokenizer = byte_level_tokenizer()
    texts = [
        "\u8fd9\u90e8\u7535\u5f71\u5f88\u597d",
        "film \U0001f600\U0001f600 good",
        "caf\u00e9 na\u00efve",
        "half \ufffd",
    ]
    for length in range(3, 9):
        rows = pd.DataFrame({"text": [*texts, "the film was good and warm"], "label": 1, "group": "all"})
        prompts = cut_prompts(rows, tokenizer, task_settings(tmp_path, prompt_length=length), "train")["prompt"]
        assert len(prompts) > 2
        for prompt in prompts:
            assert any(text.startswith(prompt) for text in rows["text"])
            assert 0 < len(tokenizer(prompt)["input_ids"]) <= length


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.jsonl", "", ["task.train_file", "no rows"]),
        ("a.jsonl", '{"body": "x"}\n', ["no `text` column", "body"]),
        ("a.jsonl", '{"text": "fine"}\n{"text": null}\n', ["row 2", "no `text`"]),
        ("a.jsonl", '{"text": "fine"}\n{"label": 1}\n', ["row 2"]),
        ("a.jsonl", '{"text": "fine"}\n{"text": "fi', ["cannot be read as jsonl", "line 2 is not JSON"]),
        ("a.jsonl", '"text"\n', ["line 1 is not an object"]),
        ("a.jsonl", "[" * 100_000, ["cannot be read as jsonl"]),
        ("a.jsonl", '{"text": "fine"}\n{"text": ["fine"]}\n', ["row 2", "['fine']", "not Unicode text"]),
        ("a.jsonl", '{"text": "\\ud83d"}\n', ["row 1", r"'\ud83d'", "not Unicode text"]),
        ("a.jsonl", '{"text": "fine", "label": 1e400}\n', ["row 1", "label inf", "a whole number"]),
        ("a.csv", "text,label\nfine,positive\n", ["row 1", "'positive'"]),
        ("a.csv", "text,label\nfine,0.9\n", ["row 1", "'0.9'", "a whole number"]),
        ("a.csv", "text,label\nfine,1e30\n", ["row 1", "'1e30'", "a whole number"]),
        ("a.csv", "text,label\nfine,but long,1\n", ["cannot be read as csv", "Expected 2 fields in line 2, saw 3"]),
        ("a.csv", "text,label,text\nfine,1,good\n", ["two columns 'text'"]),
        ("a.csv", "text,label\n", ["no rows"]),
        ("a.csv", b"text\nfine\ncaf\xe9\n", ["line 3 is not UTF-8", "Windows-1252"]),
        ("a.txt", "x", [".jsonl, .csv, .parquet"]),
    ],
)
def test_a_file_that_does_not_hold_texts_is_named(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        read_texts(path, field="task.train_file")
    for word in [str(path), *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("name, written", [("a.csv", "text\n{}\n"), ("a.jsonl", '{{"text": "{}"}}\n')])
@pytest.mark.parametrize("text", ["007", "NA", "null", "1e5", "True", "2001-01-01", "caf\u00e9\u2028"])
def test_a_text_is_read_as_it_stands(tmp_path, name, written, text):
    (tmp_path / name).write_text("\ufeff" + written.format(text))  # with the mark that Excel puts before UTF-8
    assert read_texts(tmp_path / name, field="task.train_file")["text"].tolist() == [text]


def test_labels_are_whole_numbers_in_any_spelling_and_a_missing_group_is_all(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("text,label,group\na,1,x\nb,0.0,\nc,True,y\nd,false,y\n")
    table = read_texts(path, field="task.train_file")
    assert table["label"].tolist() == [1, 0, 1, 0] and table["group"].tolist() == ["x", "all", "y", "y"]


@pytest.mark.parametrize("header", ["text, label", "Text,LABEL", "texts,labels", " text ,Labels"])
def test_labels_are_read_from_a_column_whose_name_is_nearly_right(tmp_path, header):
    (tmp_path / "texts.csv").write_text(f"{header}\ngood film,1\nbad film,-1\nfilm,\n")
    table = read_texts(tmp_path / "texts.csv", field="task.train_file")
    assert table["text"].tolist() == ["good film", "bad film", "film"]
    assert table["label"].tolist() == [1, -1, pd.NA]  # -1 is a label like any other
    (tmp_path / "texts.csv").write_text("text,Label,labels\ngood film,1,0\n")
    with pytest.raises(UserError, match="'Label' and 'labels': rename one to 'label'"):
        read_texts(tmp_path / "texts.csv", field="task.train_file")


def test_labels_of_minus_one_are_negative_texts_and_a_missing_label_is_no_label(tmp_path):
    task = load_rows(ROWS.assign(label=[1, -1, 1, None, -1]), tmp_path, "jsonl")
    assert task.positive_texts("train", 1) == [TEXTS[0], TEXTS[2]] and not task.notes
    assert task.positive_texts("train", -1) == [TEXTS[1], TEXTS[4].replace("<br>", " ")]


def test_line_breaks_become_spaces_however_long_the_blanks_are(tmp_path):
    path = tmp_path / "texts.jsonl"
    texts = ["a <br /><br> b", "<br/>a ", "a" + " " * 200_000 + "b"]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    assert read_texts(path, field="task.train_file")["text"].tolist() == ["a  b", " a ", texts[2]]


def test_a_task_without_prompts_positive_texts_or_a_class_is_named(tmp_path):
    with pytest.raises(UserError, match="task.prompt_length = 30.*no prompt from 5 texts"):
        load_rows(ROWS, tmp_path, prompt_length=30)
    with pytest.raises(UserError, match="task.positive_label = 7"):
        load_rows(ROWS, tmp_path).positive_texts("train", 7)
    with pytest.raises(UserError, match="task.train_toxic_share = 0.3: none of 3 prompts is toxic"):
        load_rows(ROWS.assign(label=1), tmp_path, train_toxic_share=0.3)


# The paper's data sets


@pytest.fixture
def paper(monkeypatch, tmp_path):
    """Settings on a data set of the paper; the data sets library caches under tmp_path."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def of(source, dataset, **changes):
        fields = {"name": "rtp-gen", "prompt_length": 4, "train_prompts": 1000, "test_prompts": 1000}
        fields |= {"minimum_characters": 1, "tail_threshold": 0.0, "source": source, "dataset": str(dataset)}
        return TaskSettings(**fields | changes)

    return of


@pytest.fixture
def hub_cache(monkeypatch, tmp_path):
    """An empty cache of the hub, which is out of reach."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def texts_of(settings):
    """The splits of a data set and the notes on its rows, by name."""
    splits, notes = load_paper_texts(settings)
    return SimpleNamespace(**splits, notes=notes)


def test_imdb_from_the_local_cache_keeps_its_splits_and_drops_the_unsupervised_texts(paper, hub_cache):
    repository = hub_cache / "datasets--stanfordnlp--imdb"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123456789")
    write_imdb(repository / "snapshots" / "0123456789", count=20)
    loaded = texts_of(paper("imdb", "stanfordnlp/imdb"))  # without a network
    assert loaded.train["label"].tolist() == loaded.test["label"].tolist() == [0] * 10 + [1] * 10
    assert not loaded.notes and not set(loaded.train["text"]) & set(loaded.test["text"])


def test_jigsaw_rows_that_nobody_scored_are_dropped_and_counted(paper, tmp_path):
    loaded = texts_of(paper("jigsaw", write_jigsaw(tmp_path / "jigsaw", count=40)))
    assert (len(loaded.train), loaded.train["label"].sum()) == (40, 10)
    assert (len(loaded.test), loaded.test["label"].sum()) == (35, 8)  # rows 0 to 4 have -1; 0 and 4 were toxic
    assert len(loaded.notes) == 1 and "split test: 5 rows without a label 0 or 1 dropped, 35 left" in loaded.notes[0]


@pytest.mark.parametrize("columns", ["kaggle", "balanced"])
def test_a_local_jigsaw_file_is_split_by_class_and_by_its_seed(paper, tmp_path, columns):
    table = kaggle_table(40)
    if columns == "balanced":
        table = table[["comment_text", "toxic"]].rename(columns={"toxic": "label"})
    table.to_csv(tmp_path / "comments.csv", index=False)
    loaded = texts_of(paper("jigsaw", tmp_path / "comments.csv"))
    assert (len(loaded.train), loaded.train["label"].sum()) == (32, 8)
    assert (len(loaded.test), loaded.test["label"].sum()) == (8, 2)
    assert not set(loaded.train["text"]) & set(loaded.test["text"])
    again, other = (texts_of(paper("jigsaw", tmp_path / "comments.csv", split_seed=seed)).test for seed in (42, 43))
    assert again.equals(loaded.test) and not other.equals(loaded.test)


def test_kaggles_folder_is_read_as_unpacked(paper, tmp_path):
    (tmp_path / "jigsaw").mkdir()
    test, both = kaggle_table(40, seed=1), ["id", "comment_text"]
    test.loc[:4, "toxic"] = -1  # nobody scored them
    kaggle_table(40).to_csv(tmp_path / "jigsaw" / "train.csv.zip", index=False)
    test[both].to_csv(tmp_path / "jigsaw" / "test.csv.zip", index=False)
    test.drop(columns="comment_text")[::-1].to_csv(tmp_path / "jigsaw" / "test_labels.csv.zip", index=False)
    test[["id"]].assign(toxic=0.5).to_csv(tmp_path / "jigsaw" / "sample_submission.csv.zip", index=False)
    loaded = texts_of(paper("jigsaw", tmp_path / "jigsaw"))
    assert loaded.train["text"].tolist() == kaggle_table(40)["comment_text"].tolist()
    assert loaded.test["text"].tolist() == test["comment_text"].tolist()[5:]
    assert loaded.test["label"].tolist() == test["toxic"].tolist()[5:]


def test_files_of_a_folder_that_are_not_read_are_named(paper, tmp_path):
    (tmp_path / "jigsaw").mkdir()
    for seed, name in enumerate(("train-1.csv", "train-2.csv", "train-3.jsonl", "test.csv")):
        table, path = kaggle_table(40, seed), tmp_path / "jigsaw" / name
        table.to_csv(path, index=False) if path.suffix == ".csv" else table.to_json(path, orient="records", lines=True)
    loaded = texts_of(paper("jigsaw", tmp_path / "jigsaw"))
    assert len(loaded.train) == 80
    (note,) = (note for note in loaded.notes if "not read" in note)
    assert note.endswith("not read, since no split has them: train-3.jsonl")


@pytest.mark.parametrize("place", ["train.csv", "folder/train.csv"])
def test_a_text_of_a_data_set_is_read_as_it_stands_in_a_file_and_in_a_folder(paper, tmp_path, place):
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    dataset = paper("imdb", path if place == "train.csv" else path.parent)
    path.write_text("text,label\n007,1\n1917,0\n1e5,1\nNA,0\n2001,1\n2002,0\n")
    loaded = texts_of(dataset)
    assert sorted([*loaded.train["text"], *loaded.test["text"]]) == ["007", "1917", "1e5", "2001", "2002", "NA"]
    path.write_text("text,label\n" + "the film was good, really fine,1\nthe film was bad, really bad,0\n" * 5)
    with pytest.raises(UserError, match="cannot be read as csv.*2 fields in line 2, saw 3"):
        texts_of(dataset)
    lines = [json.dumps({"text": text, "label": i % 2}) for i, text in enumerate(['"fine"', "1234567890123"] * 3)]
    path.unlink()
    path = path.with_suffix(".jsonl")
    path.write_text("\n".join([*lines, '{"text": 1917, "label": 1}']))
    with pytest.raises(UserError, match="row 7 has `text` 1917, which is not Unicode text"):
        texts_of(paper("imdb", path if place == "train.csv" else path.parent))


def test_real_toxicity_prompts_are_read_from_nested_rows(paper, tmp_path):
    folder = write_prompts(tmp_path / "prompts", count=83)  # 80 with a score, 20 of them toxic
    loaded = texts_of(paper("rtp", folder, test_share=0.25))
    assert (len(loaded.train), loaded.train["label"].sum()) == (60, 15)
    assert (len(loaded.test), loaded.test["label"].sum()) == (20, 5)
    assert ["3 rows without a score (null) dropped, 80 left" in note for note in loaded.notes] == [True]
    assert loaded.train["text"].equals(loaded.train["prompt"])
    texts = pd.concat([loaded.train, loaded.test]).set_index("text")
    for row in prompts_rows(83)[:80]:
        found = texts.loc[row["prompt"]["text"]]
        assert found["label"] == (row["prompt"]["toxicity"] > 0.5)
        assert found["group"] == ("challenging" if row["challenging"] else "all")
    whole = texts_of(paper("rtp", folder, continuations=True)).train
    assert (whole["text"].str.len() > whole["prompt"].str.len()).all()


def test_a_score_at_the_threshold_is_not_toxic(paper, tmp_path):
    rows = prompts_rows(20)[:-3]
    rows[0]["prompt"]["toxicity"], rows[1]["prompt"]["toxicity"] = 0.5, 0.51
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    loaded = texts_of(paper("rtp", tmp_path / "prompts.jsonl"))
    labels = pd.concat([loaded.train, loaded.test]).set_index("text")["label"]
    assert [labels[row["prompt"]["text"]] for row in rows[:2]] == [0, 1]


@pytest.mark.parametrize(
    "count, share, toxic, clean",
    [
        (10, 0.3, 3, 7),
        (1000, 0.5, 30, 30),  # 30 of 120 are toxic, so at most 30 others are kept
        (1000, 0.1, 10, 90),  # 90 are not toxic, so at most 10 toxic ones are kept
        (1000, 0.25, 30, 90),
    ],
)
def test_the_toxic_share_is_exact_and_the_texts_are_those_of_the_prompts(paper, tmp_path, count, share, toxic, clean):
    changes = {"train_prompts": count, "train_toxic_share": share, "prompt_length": 200, "shorter_prompts": True}
    chosen = paper("jigsaw", write_jigsaw(tmp_path / "jigsaw", count=120), positive_label=0, **changes)
    task = load_task(chosen, byte_level_tokenizer())
    assert task.train["label"].value_counts().to_dict() == {0: clean, 1: toxic}
    assert sorted(task.train["prompt"]) == sorted(task.train_texts["text"]) and len(task.test) > 100
    assert set(task.positive_texts("train", 0)) == set(task.train.loc[task.train["label"] == 0, "prompt"])
    assert load_task(chosen, byte_level_tokenizer()).train.equals(task.train)


def test_pocket_rtp_has_the_papers_shares_and_the_prompts_own_labels():
    profile = load_profile("pocket-rtp", {"task.train_prompts": 200, "task.test_prompts": 100})
    task = load_task(profile.task, build._tokenizer(vocabulary(TALK_PAGES)))
    assert task.train["label"].sum() == 60 and len(task.train) == 200
    assert task.test["label"].sum() == 50 and len(task.test) == 100
    assert (task.train_texts["text"].str.len() > 60).all()


@pytest.mark.parametrize(
    "source, name, content, words",
    [
        ("imdb", "a.csv", "review,label\nfine,1\n", ["no column text", "it has: review, label"]),
        ("imdb", "a.csv", "text,label\nfine,pos\n", ["row 1", "'pos'", "number"]),
        ("imdb", "a.txt", "fine", [".jsonl, .csv, .parquet"]),
        ("jigsaw", "a.csv", "id,comment_text\n1,fine\n", ["no column toxic or label", "it has: id, comment_text"]),
        ("jigsaw", "a.csv", "comment_text,label\nfine,0\ngood,0\nwell,-1\n", ["no text that is toxic", "1 rows"]),
        ("jigsaw", "a.csv", "", ["cannot be read"]),
        ("imdb", "a.csv", "text,label\nfine,but long,1\n", ["cannot be read as csv", "2 fields in line 2, saw 3"]),
        ("imdb", "a.jsonl", '{"text": "a", "label": 1}\n{"text": ["b"]}\n', ["row 2", "['b']", "not Unicode text"]),
        ("imdb", "a/train.parquet", "PAR1 cut off", ["a' cannot be read"]),
        ("rtp", "a.jsonl", '{"prompt": {"text": "x"}}\n', ["no column prompt.toxicity", "it has: prompt.text"]),
        ("rtp", "a.jsonl", '{"prompt": {"text": "x", "toxicity": 0.1}}\n{"prompt": {"te', ["line 2 is not JSON"]),
        ("rtp", "a.jsonl", '{"prompt": {"text": "x", "toxicity": null}}\n', ["no text that is toxic", "null", "left"]),
    ],
)
def test_a_data_set_that_does_not_fit_is_named(paper, tmp_path, source, name, content, words):
    (tmp_path / "a").mkdir()
    (tmp_path / name).write_text(content)
    dataset = name.partition("/")[0]
    with pytest.raises(UserError) as caught:
        load_paper_texts(paper(source, tmp_path / dataset))
    for word in ["task.dataset", dataset, *words]:
        assert word in str(caught.value)


def test_a_class_that_is_empty_after_filtering_is_named(paper, tmp_path):
    rows = pd.DataFrame({"comment_text": ["short"] * 5 + ["long " * 20 + str(i) for i in range(9)]})
    rows.assign(label=[1] * 5 + [0] * 9).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(UserError, match="no text that is toxic.*5 rows of fewer than 65 characters dropped, 9 left"):
        load_paper_texts(paper("jigsaw", tmp_path / "a.csv", minimum_characters=65))


def test_a_hub_data_set_without_a_network_is_reported(paper, hub_cache):
    with pytest.raises(UserError, match="task.dataset = 'stanfordnlp/imdb'.*no network.*pocket-imdb"):
        load_paper_texts(paper("imdb", "stanfordnlp/imdb"))
    with pytest.raises(UserError, match="neither an existing folder or file nor a hub id"):
        load_paper_texts(paper("imdb", "no/such/folder"))
