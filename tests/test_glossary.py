"""The terms of the course. The tests of each log check that the glossary explains all of its keys."""

import re

import pandas as pd

from rarlhf_nb.lab.glossary import folded_html, glossary_table, terms_table


def test_every_word_has_one_sentence_and_the_numbers_of_its_equations():
    terms = terms_table().set_index("term")
    assert terms.index.is_unique and all(meaning.endswith(".") for meaning in terms["meaning"])
    numbers = {"reward": "3", "dense reward": "5", "CVaR": "6", "VaR": "6", "soft-risk schedule": "8-10"}
    assert terms["equation"][list(numbers)].to_dict() == numbers


def test_a_folded_table_shows_whole_texts_as_text():
    html = folded_html(pd.DataFrame({"<b>": ["<script>" + "x" * 100, 1]}), "a & b")
    assert html.startswith("<details><summary><b>a &amp; b</b></summary>") and html.endswith("</details>")
    assert "&lt;b&gt;" in html and "&lt;script&gt;" + "x" * 100 in html and "<script>" not in html
    for table in (terms_table(), glossary_table()):
        assert len(re.findall("<td", folded_html(table, ""))) == table.size
