"""What holds for every input from outside: a file or a setting is read as it stands or refused by its name, and a text
that becomes HTML or Markdown stays a text.

Any other exception than `UserError` fails. 200 examples each; with HYPOTHESIS_PROFILE=soak, 20,000.
"""

import csv
import json
import unicodedata

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from parsed import Parsed

from rarlhf_nb.data.tasks import read_texts
from rarlhf_nb.errors import UserError
from rarlhf_nb.lab import texts as widget_text
from rarlhf_nb.lab.cli import join_pairs
from rarlhf_nb.lab.evaluation.cells import markdown_line, markdown_table
from rarlhf_nb.lab.evaluation.generations import read_generations
from rarlhf_nb.lab.evaluation.tail_prompts import tail_prompts_html
from rarlhf_nb.lab.glossary import folded_html
from rarlhf_nb.lab.plots.theme import label_text
from rarlhf_nb.lab.profiles import Profile, known_keys, load_profile, read_settings

ENDINGS = st.sampled_from(["jsonl", "json", "csv", "parquet"])
# characters at which readers stumble: a NUL, the mark of byte order, a turn of direction, separators, quotes
ODD = st.sampled_from(list("\0\ufeff\u202e\u2028\x85\x1a\r\n\t \"',;\\|&<>$`*_#[](){}é😀"))
TEXTS = st.text(st.characters(exclude_categories=["Cs"]) | ODD, max_size=40)
SAID = TEXTS.filter(str.strip)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters() | ODD, max_size=20)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


def texts_or_refusal(path):
    """What `read_texts` made of a file, checked; None if it refused the file by its name."""
    try:
        table = read_texts(path, field="task.train_file")
    except UserError as error:
        assert "task.train_file" in str(error) and str(path) in str(error) and len(str(error)) < 2000
        return None
    assert len(table) and list(table) == ["text", "label", "group"]
    assert all(isinstance(label, int) or label is pd.NA for label in table["label"])
    for column in ("text", "group"):
        assert table[column].map(lambda text: text == text.encode().decode()).all()
    return table


# Files


@given(ENDINGS, st.binary(max_size=200))
@example("csv", "text,label\nfine,1\n".encode("utf-16"))
@example("jsonl", b"[" * 100_000)
@example("json", b'[[1], {"text": 2}]')
@example("csv", b"text\n" + b"x" * 1_000_000)
@example("parquet", b"PAR1\xff\xff\xff\x7fPAR1")
def test_any_bytes_are_texts_or_refused_and_so_are_a_folder_and_a_missing_file(folder, ending, content):
    path = folder / f"bytes.{ending}"
    path.write_bytes(content)
    texts_or_refusal(path)
    (folder / f"folder.{ending}").mkdir(exist_ok=True)
    assert texts_or_refusal(folder / f"folder.{ending}") is None
    assert texts_or_refusal(folder / f"missing.{ending}") is None


@given(st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"]) | ODD, max_size=8), max_size=4), max_size=5))
def test_any_csv_is_texts_or_refused(folder, rows):
    path = folder / "cells.csv"
    path.write_text("text,label\n" + "\n".join(map(",".join, rows)), encoding="utf-8", newline="")
    texts_or_refusal(path)


def write_csv(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)


ROWS = st.lists(
    st.tuples(SAID.filter(lambda text: "<br" not in text), st.integers(-(10**9), 10**9), SAID), min_size=1, max_size=6
)


@given(ROWS)
@example([("007", 1, "NA")])
@example([("NA", 0, "1e5"), ("null", 1, "2001-01-01")])
def test_texts_labels_and_groups_come_back_from_every_format(folder, rows):
    names = ["text", "label", "group"]
    write_csv(folder / "rows.csv", [names, *rows])
    objects = [dict(zip(names, row, strict=True)) for row in rows]
    lines = [json.dumps(row, ensure_ascii=index % 2 == 0) for index, row in enumerate(objects)]
    (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "rows.json").write_text(json.dumps(objects, indent=1))
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    pq.write_table(pa.table({name: list(column) for name, column in columns.items()}), folder / "rows.parquet")
    for ending in ("csv", "jsonl", "json", "parquet"):
        found = texts_or_refusal(folder / f"rows.{ending}")
        assert [tuple(row) for row in found.to_numpy()] == rows


@given(st.lists(st.fixed_dictionaries({}, optional={"text": VALUES, "label": VALUES, "group": VALUES}), max_size=3))
@example([{"text": "half a pair \ud83d"}])
@example([{"text": "a", "label": 10**400}])
def test_any_json_values_are_texts_or_refused(folder, rows):
    path = folder / "values.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = texts_or_refusal(path)
    if found is not None:
        assert [row["text"] for row in rows] == found["text"].tolist() or any("<br" in row["text"] for row in rows)
        for given_label, label in zip([row.get("label") for row in rows], found["label"], strict=True):
            said = {"true": 1, "false": 0}.get(str(given_label).strip().lower(), given_label)
            assert (label is pd.NA) if pd.isna(said) else float(said) == label


PARQUET = st.sampled_from(
    [
        pa.array(["a", "b"]),
        pa.array(["a", None]),
        pa.array([b"a", b"\xff"]),
        pa.array([1, 2]),
        pa.array([1.5, float("nan")]),
        pa.array([2**63, 2**64 - 1], pa.uint64()),
        pa.array([True, False]),
        pa.array([["a"], []]),
        pa.array([{"a": 1}, None]),
        pa.array(["a", "b"]).dictionary_encode(),
        pa.array([-(2**62), 2**62], pa.timestamp("ms")),
        pa.array([-(2**31), 2**31 - 1], pa.date32()),
        pa.nulls(2),
    ]
)


@given(st.lists(st.tuples(st.sampled_from(["text", "label", "group", ""]), PARQUET), max_size=4), st.data())
def test_any_parquet_whole_or_cut_is_texts_or_refused(folder, columns, data):
    path = folder / "columns.parquet"
    names, arrays = [name for name, _ in columns], [array for _, array in columns]
    pq.write_table(pa.Table.from_arrays(arrays, names), path)
    texts_or_refusal(path)
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    assert texts_or_refusal(path) is None


def generations_or_refusal(path):
    try:
        tables = read_generations(path)
    except UserError as error:
        assert "generations" in str(error) and str(path) in str(error)
        return None
    assert tables and all(pd.notna(table.drop(columns="label")).all(axis=None) for table in tables.values())
    return tables


@given(st.binary(max_size=100), st.lists(st.lists(TEXTS, min_size=4, max_size=4), max_size=3))
def test_any_generations_are_tables_or_refused(folder, content, rows):
    path = folder / "generations.csv"
    path.write_bytes(content)
    assert generations_or_refusal(path) is None
    write_csv(path, [["query", "prompt_score", "a@b_response", "a@b_reward"], *rows])
    generations_or_refusal(path)


FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.tuples(TEXTS, FINITE, TEXTS, FINITE), min_size=1, max_size=5), SAID)
def test_generations_come_back_as_they_were_written(folder, rows, method):
    path = folder / "written.csv"
    write_csv(path, [["query", "prompt_score", f"{method}_response", f"{method}_reward"], *rows])
    assume(f"{method}_response" not in ("query", "prompt_score"))
    found = generations_or_refusal(path)[method]
    assert [tuple(row) for row in found[["prompt", "prompt_score", "completion", "reward"]].to_numpy()] == rows


# Settings

PLAIN = st.text(st.characters() | ODD, max_size=30)
YAML = st.text(st.sampled_from(list("!!&*[]{}:,-?|>'\"#%@`=.0123456789eExob_abnull~TZ \n")), max_size=25)


@given(PLAIN, PLAIN | YAML)
@example("risk.alpha", "2001-99-99")
@example("risk.alpha", "!!int x")
@example("risk.alpha", "!!bool x")
@example("risk.alpha", "!!timestamp x")
@example("risk.alpha", "0x_")
@example("risk.alpha", "[" * 5000)
@example("risk.alpha", "9" * 5000)
@example("prompted.prefixes", "[&a [x, x], &b [*a, *a], &c [*b, *b], [*c, *c]]")
def test_any_words_after_p_are_values_or_refused(key, value):
    for pair in (key, f"{key}={value}"):
        try:
            parsed = read_settings(join_pairs(["-p", pair])[1:])
        except UserError as error:
            assert "-p" in str(error)
        else:
            assert len(parsed) == 1


@given(st.lists(PLAIN | st.just("-p"), max_size=8))
def test_joining_pairs_loses_no_word(words):
    assert "".join(join_pairs(words)).replace("=", "") == "".join(words).replace("=", "")


# most settings are numbers, and one that fits must come through
NUMBERS = st.integers(-2, 40) | st.floats(0, 2) | st.integers() | st.just(10**400)


@given(st.dictionaries(st.sampled_from(known_keys()), NUMBERS | VALUES, min_size=1, max_size=3))
@example({"policy.lora": "x", "policy.lora.r": 4})
@example({"task.train_file": "x" * 5000})
@example({"task.train_file": "a\0b"})
@example({"ppo.iterations": 10**400})
def test_any_settings_are_a_profile_or_refused_by_their_names(overrides):
    before = json.dumps(overrides)
    try:
        profile = load_profile("pocket", overrides)
    except UserError as error:
        named = [key for key in overrides if key.rpartition(".")[2] in str(error)]
        assert named or "policy.lora" in str(error)
    else:
        assert isinstance(profile, Profile) and 0 < profile.schedule().kept(1) <= profile.ppo.batch_size
    assert json.dumps(overrides) == before


@given(PLAIN, VALUES)
def test_any_other_key_is_refused(key, value):
    assume(key not in known_keys())
    with pytest.raises(UserError, match="is unknown"):
        load_profile("pocket", {key: value})


# Texts as HTML and Markdown

MARKUP = st.sampled_from(
    [
        "<script>",
        "<img src=x onerror=alert(1)>",
        "</td>",
        "&lt;b&gt;",
        "-->",
        "'\" onload=",
        "![a](http://b)",
        "**",
        "1. ",
    ]
)
HOSTILE = st.lists(MARKUP | st.text(st.characters() | ODD, max_size=6), max_size=8).map("".join)
# no reader lets half a surrogate pair in (see the example above), and pandas could not hold it
HOSTILE_IN_A_TABLE = HOSTILE.map(lambda text: text.encode(errors="ignore").decode())


def tail_prompts(text):
    index = pd.MultiIndex.from_tuples([(text, 0.0)], names=["prompt", "prompt_score"])
    return tail_prompts_html(pd.DataFrame({(text, "completion"): [text], (text, "reward"): [1.0]}, index=index))


PAGES = {
    "text_html": widget_text.text_html,
    "hover_text": widget_text.hover_text,
    "error_html": lambda text: widget_text.error_html(ValueError(text)),
    "table_html": lambda text: widget_text.table_html([text], [[widget_text.text_cell("", text)]]),
    "text_cell": lambda text: widget_text.text_cell(text, text, in_tail=True),
    "tail_prompts": tail_prompts,
    "label_text": label_text,
    "glossary": lambda text: folded_html(pd.DataFrame({text: [text]}), text),
}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
@given(text=HOSTILE_IN_A_TABLE)
def test_a_text_adds_no_tag_to_a_page(page, text):
    harmless = "x" * len(widget_text.visible(text))  # as long, since long texts are folded and broken into lines
    assert Parsed(page(text)).tags == Parsed(page(harmless)).tags


@given(HOSTILE)
def test_a_visible_text_hides_no_character(text):
    shown = widget_text.visible(text)
    for character in shown:  # Zs: spaces; Cn: not assigned, shown as a box
        assert character.isprintable() or unicodedata.category(character) in ("Zs", "Cn")
    if len(shown) <= widget_text.MAX_SHOWN:
        assert Parsed(widget_text.text_html(text)).text == shown


VIEWER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
SHOWN = st.lists(MARKUP | st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]) | ODD, max_size=6), max_size=8)


@given(SHOWN.map("".join).filter(str.strip))
@example("![picture](https://example.com/a.png)")
@example("[a]: https://example.com")
@example("1. --- # + =")
@example(r"\| a \\| b")
def test_a_text_in_markdown_shows_as_it_stands(text):
    stands = " ".join(text.split()).replace("\0", "\ufffd")  # as Markdown demands
    line = Parsed(VIEWER.render(f"- {markdown_line(text)}"))
    assert line.tags == Parsed(VIEWER.render("- x")).tags and line.text.strip("\n") == stands
    table = Parsed(VIEWER.render(markdown_table(pd.DataFrame({text: [text]}, index=[text]))))
    assert table.tags == Parsed(VIEWER.render(markdown_table(pd.DataFrame({"x": ["x"]}, index=["x"])))).tags
    assert table.text.replace("\u00a0", " ").count(stands) >= 3
    assert "<table>" in VIEWER.render(markdown_table(pd.DataFrame({"": [""]}, index=[text])))
