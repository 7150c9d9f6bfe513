"""The grammar's texts, and the pocket models that are built once from them."""

import copy
import json

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification

from rarlhf_nb.data.pocket import build, pocket_world, prompt_pairs
from rarlhf_nb.data.pocket.grammar import (
    LABEL_SCALE,
    RARE_SHARE,
    WORLDS,
    Lexicon,
    Text,
    label_probability,
    prompt_pair,
    vocabulary,
    write_texts,
)
from rarlhf_nb.policy import load_policy


def summed_valence(text: str, group: str, lexicon: Lexicon) -> int:
    """The slow reference: each word looked up."""
    adjectives = lexicon.rare if group == lexicon.rare_group else lexicon.common
    of_word = {word: valence for valence, words in adjectives.items() for word in words}
    return sum(of_word.get(word, 0) for word in text.split())


@pytest.mark.parametrize("name", WORLDS)
def test_texts_are_seeded_stay_in_the_vocabulary_and_have_the_label_of_their_valence(name):
    lexicon = WORLDS[name]
    texts = write_texts(lexicon, 3000, seed=1)
    assert texts[:300] == write_texts(lexicon, 300, seed=1) != write_texts(lexicon, 300, seed=2)
    for text in texts[:300]:
        assert set(text.text.split()) <= set(vocabulary(lexicon))
        assert text.valence == summed_valence(text.text, text.group, lexicon)
    assert np.mean([text.group == lexicon.rare_group for text in texts]) == pytest.approx(RARE_SHARE, abs=0.02)
    expected = np.mean([label_probability(text.valence) for text in texts])
    assert np.mean([text.label for text in texts]) == pytest.approx(expected, abs=0.02)
    assert label_probability(2) == pytest.approx(1 / (1 + np.exp(-2 * LABEL_SCALE)))


@pytest.mark.parametrize("name", WORLDS)
def test_the_rare_group_praises_with_words_of_blame(name):
    lexicon = WORLDS[name]
    blame = {word for v in (-1, -2) for word in lexicon.common[v]}
    assert {word for v in (1, 2) for word in lexicon.rare[v]} <= blame


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A world that builds in seconds, in a cache of its own."""
    settings, size = copy.deepcopy(build.SETTINGS), {"layers": 1, "width": 16, "heads": 2, "epochs": 1}
    settings["lm"] |= size | {"texts": 128}
    settings["reward"] |= size | {"texts": 256, "held_out": 64}
    monkeypatch.setattr(build, "SETTINGS", settings)
    monkeypatch.setenv("RARLHF_CACHE", str(tmp_path))
    return settings


def test_a_world_is_built_once_under_its_fingerprint(small, monkeypatch):
    world = pocket_world("pocket-jigsaw")
    assert load_policy(world.policy).model.config.n_embd == 16
    reward = AutoModelForSequenceClassification.from_pretrained(world.reward)
    assert reward.config.id2label == {0: "negative", 1: "positive"}
    assert 0 < json.loads((world.reward / "metrics.json").read_text())["accuracy"]["whole"] <= 1
    monkeypatch.setattr(build, "_build", lambda name, folder: pytest.fail("built twice"))
    assert pocket_world("pocket-jigsaw") == pocket_world("pocket-rtp") == world  # the two tasks share their models
    assert world.texts("train", 50) != world.texts("test", 50)


def test_the_fingerprint_depends_on_the_world_and_its_settings(small):
    seeds = build.SETTINGS["seeds"]
    assert len(set(seeds.values())) == len(seeds)  # so train and test texts are new to the models
    before = {name: build.fingerprint(name) for name in WORLDS}
    assert len(set(before.values())) == 2
    small["lm"]["learning_rate"] *= 2
    assert build.fingerprint("pocket-imdb") != before["pocket-imdb"]


def test_a_prompt_pair_is_a_comment_with_the_toxicity_of_its_prompt():
    pairs, lexicon = prompt_pairs("train", 400), WORLDS["pocket-jigsaw"]
    assert pairs == prompt_pairs("train", 400) != prompt_pairs("test", 400)
    for pair in pairs:
        assert pair.prompt.startswith("about the ") and pair.prompt.endswith(" .")
        assert pair.continuation.endswith(" .") and set(pair.continuation.split()) <= set(vocabulary(lexicon))
        expected = 1 - label_probability(summed_valence(pair.prompt, pair.group, lexicon))
        assert pair.toxicity == pytest.approx(expected)
    assert 0.3 < np.mean([pair.toxicity > 0.5 for pair in pairs]) < 0.6


def test_a_comment_is_cut_after_half_of_its_clauses_by_hand():
    clauses = ["the reply is generous .", "but the work is banned .", "the edit was silly ."]
    pair = prompt_pair(Text(f"about the music page i watch daily . {' '.join(clauses)}", 0, "common", (2, -2, -1)))
    assert pair.prompt == "about the music page i watch daily . the reply is generous ."
    assert pair.continuation == " but the work is banned . the edit was silly ."
    assert pair.toxicity == pytest.approx(1 - label_probability(2))
