"""The grammar's texts, and the pocket models that were made from them."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from rarlhf_nb.data import pocket
from rarlhf_nb.data.pocket import MODELS, SEEDS, PocketWorld, build, pocket_world, prompt_pairs
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
from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.cli import app
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


@pytest.mark.parametrize("name", WORLDS)
def test_the_models_come_with_the_package_and_with_the_fingerprint_of_what_made_them(name):
    world = pocket_world(name)
    assert world.fingerprint == build.fingerprint(name), "the models are of another grammar: `rarlhf pocket build`"
    assert load_policy(world.policy).model.config.n_embd == build.SETTINGS["lm"]["width"]
    reward = AutoModelForSequenceClassification.from_pretrained(world.reward)
    assert reward.config.id2label == {0: "negative", 1: "positive"}
    assert accuracy(world.folder) > 0.85
    assert world.texts("train", 50) != world.texts("test", 50)
    assert not set(SEEDS.values()) & set(build.SETTINGS["seeds"].values())  # so these texts are new to the models


def test_damaged_models_are_named_with_the_remedy(monkeypatch, tmp_path):
    shutil.copytree(MODELS, tmp_path / "models")
    monkeypatch.setattr(pocket, "MODELS", tmp_path / "models")
    weights = tmp_path / "models" / "pocket-imdb" / "reward" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match="reward/model.safetensors is damaged or missing: .* `rarlhf pocket build`"):
        pocket_world("pocket-imdb")
    assert pocket_world("pocket-jigsaw").folder == tmp_path / "models" / "pocket-jigsaw"


def test_two_tasks_share_their_models():
    assert pocket_world("pocket-jigsaw") == pocket_world("pocket-rtp") != pocket_world("pocket-imdb")


def test_the_fingerprint_depends_on_the_world_and_its_settings(monkeypatch):
    before = {name: build.fingerprint(name) for name in WORLDS}
    assert len(set(before.values())) == 2
    monkeypatch.setitem(build.SETTINGS["lm"], "learning_rate", 1.0)
    assert build.fingerprint("pocket-imdb") != before["pocket-imdb"]


def accuracy(folder):
    return json.loads((folder / "reward" / "metrics.json").read_text())["accuracy"]["whole"]


def test_the_models_are_built_by_a_command(monkeypatch, tmp_path):
    size = {"layers": 1, "width": 16, "heads": 2, "epochs": 1}
    monkeypatch.setitem(build.SETTINGS, "lm", build.SETTINGS["lm"] | size | {"texts": 128})
    monkeypatch.setitem(build.SETTINGS, "reward", build.SETTINGS["reward"] | size | {"texts": 256, "held_out": 64})
    assert CliRunner().invoke(app, ["pocket", "build", str(tmp_path)]).exit_code == 0
    for name in WORLDS:
        assert load_policy(tmp_path / name / "policy").model.config.n_embd == 16
        assert PocketWorld(name, tmp_path / name).fingerprint == build.fingerprint(name)
        assert 0 < accuracy(tmp_path / name) <= 1


@pytest.mark.soak
@pytest.mark.parametrize("name", WORLDS)
def test_models_that_are_built_again_are_as_good(name, tmp_path):
    build.build_models(name, tmp_path)
    shipped = pocket_world(name)
    assert PocketWorld(name, tmp_path).fingerprint == shipped.fingerprint
    assert accuracy(tmp_path) == pytest.approx(accuracy(shipped.folder), abs=0.01)
    losses = [mean_loss(folder / "policy", shipped.texts("test", 500)) for folder in (tmp_path, shipped.folder)]
    assert losses[0] == pytest.approx(losses[1], abs=0.02)


def mean_loss(folder, texts):
    """Nats per token of the language model."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    rows = tokenizer([text.text for text in texts], padding=True, return_tensors="pt")
    labels = rows["input_ids"].masked_fill(rows["attention_mask"] == 0, -100)
    with torch.no_grad():
        return model(**rows, labels=labels).loss.item()


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
