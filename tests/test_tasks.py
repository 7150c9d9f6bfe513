import pandas as pd
import pytest
from tiny import tiny_tokenizer

from rarlhf_nb.errors import UserError
from rarlhf_nb.profiles import TaskSettings
from rarlhf_nb.tasks import load_task, read_texts

ROWS = pd.DataFrame(
    {
        "text": [
            "the film is good good",
            "the plot was bad bad",
            "the film is good bad",
            "film",
            "bad<br /><br />plot is the film",
        ],
        "label": [1, 0, 1, 1, 0],
    }
)


def settings(train, test, **changes):
    fields = {"name": "imdb-gen", "source": "files", "prompt_length": 3, "train_prompts": 10, "test_prompts": 2}
    fields |= {"minimum_characters": 0, "tail_threshold": 0.0, "train_file": str(train), "test_file": str(test)}
    return TaskSettings(**fields | changes)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_prompts_are_the_first_tokens_of_each_long_enough_text(tmp_path, ending):
    path = tmp_path / f"texts.{ending}"
    write = {"jsonl": lambda: ROWS.to_json(path, orient="records", lines=True), "csv": lambda: ROWS.to_csv(path)}
    write.get(ending, lambda: ROWS.to_parquet(path))()
    task = load_task(settings(path, path), tiny_tokenizer())
    # one text is too short, two share their first three words
    assert sorted(task.train["prompt"]) == ["bad plot is", "the film is", "the plot was"]
    assert set(task.train["group"]) == {"all"} and len(task.test) == 2
    assert task.positive_texts("train", 1) == ROWS.loc[ROWS["label"] == 1, "text"].tolist()
    again = load_task(settings(path, path), tiny_tokenizer())
    assert again.train.equals(task.train) and again.fingerprint() == task.fingerprint()


def test_the_fingerprint_is_that_of_the_texts_not_of_the_file(tmp_path):
    def fingerprint(name, rows):
        path = tmp_path / name
        rows.to_csv(path) if name.endswith("csv") else rows.to_parquet(path)
        return load_task(settings(path, path), tiny_tokenizer()).fingerprint()

    assert fingerprint("a.csv", ROWS) == fingerprint("a.parquet", ROWS) != fingerprint("b.csv", ROWS[::-1])


def test_texts_without_labels_are_all_positive(tmp_path):
    path = tmp_path / "texts.csv"
    ROWS[["text"]].to_csv(path)
    task = load_task(settings(path, path), tiny_tokenizer())
    assert set(task.train["label"]) == {-1} and len(task.positive_texts("test", 1)) == 5


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.jsonl", "", ["task.train_file", "no rows"]),
        ("a.jsonl", '{"body": "x"}\n', ["no `text` column", "body"]),
        ("a.jsonl", '{"text": "fine"}\n{"text": null}\n', ["row 2", "no `text`"]),
        ("a.jsonl", '{"text": "fine"}\n{"label": 1}\n', ["row 2"]),
        ("a.jsonl", '{"text": "fi', ["cannot be read as jsonl"]),
        ("a.csv", "text,label\nfine,positive\n", ["row 1", "'positive'"]),
        ("a.txt", "x", [".jsonl, .csv, .parquet"]),
    ],
)
def test_a_file_that_does_not_hold_texts_is_named(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        read_texts(path, field="task.train_file")
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_no_prompt_left_and_no_positive_text_are_named(tmp_path):
    path = tmp_path / "texts.csv"
    ROWS.to_csv(path)
    with pytest.raises(UserError, match="task.prompt_length = 30.*no prompt of 5 texts"):
        load_task(settings(path, path, prompt_length=30), tiny_tokenizer())
    with pytest.raises(UserError, match="task.positive_label = 7"):
        load_task(settings(path, path), tiny_tokenizer()).positive_texts("train", 7)
