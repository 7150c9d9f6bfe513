"""A classifier is trained from its seed, measured on texts that it never saw, and saved."""

import json
import random

import numpy as np
import pytest
import torch
from tiny_classifier import TEXTS, WORDS, classifier_tokenizer, distilbert

from rarlhf_nb.data.classifier import train_classifier
from rarlhf_nb.rewards import ClassifierReward, load_reward


@pytest.fixture
def tokenizer():
    return classifier_tokenizer()


def labelled(count: int, seed: int) -> list[tuple[str, int]]:
    """Texts of ten words that are positive when they contain `good`, negative when they contain `bad`."""
    draw = random.Random(seed)
    fillers = [word for word in WORDS if word not in ("good", "bad")]
    pairs = []
    for label in (draw.randint(0, 1) for _ in range(count)):
        words = draw.choices(fillers, k=10)
        words[draw.randrange(10)] = ("bad", "good")[label]
        pairs.append((" ".join(words), label))
    return pairs


def random_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def test_a_classifier_is_trained_measured_and_saved(tokenizer, tmp_path):
    model = distilbert()
    model.config.initializer_range = 0.02
    model.init_weights()
    options = {"epochs": 3, "learning_rate": 3e-3, "lengths": (1, 10)}
    before = random_states()
    metrics = train_classifier(model, tokenizer, labelled(1500, 1), labelled(200, 2), tmp_path, **options)
    assert random_states() == before
    assert metrics == json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["accuracy"]["10"] > 0.95
    assert metrics["accuracy"]["1"] < 0.75  # one word in ten tells
    assert metrics["train_texts"] == 1500 and metrics["held_out_texts"] == 200
    reward = load_reward(tmp_path, 1, ["positive"])
    good, bad = reward.score(["the film was good", "the film was bad"])
    assert good > bad + 1


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_training_follows_its_seed_alone(tokenizer, tmp_path, mixed_precision):
    def scores(seed: int) -> list[float]:
        model = distilbert()
        torch.manual_seed(random.randrange(1000))
        options = {"batch_size": 16, "windows": (3, 6), "seed": seed, "mixed_precision": mixed_precision}
        metrics = train_classifier(model, tokenizer, labelled(64, 1), labelled(8, 2), tmp_path, **options)
        assert metrics["accuracy"].keys() == {"whole"}
        return ClassifierReward(model, tokenizer, 1).score(TEXTS)

    assert scores(1) == scores(1) != scores(2)
