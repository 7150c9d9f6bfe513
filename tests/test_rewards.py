"""A reward is the raw logit of the given class, independent of the batch; bad rewards are named."""

import numpy as np
import pytest
import torch
from tiny_classifier import LENGTH, TEXTS, WORDS, classifier_tokenizer, distilbert, word_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from rarlhf_nb.errors import UserError
from rarlhf_nb.rewards import ClassifierReward, check_rewards, load_reward


@pytest.fixture
def tokenizer():
    return classifier_tokenizer()


SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
INPUT = {"vocab_size": 11, "max_position_embeddings": LENGTH, "pad_token_id": 0, "initializer_range": 0.5}


def bert_with_six_labels() -> BertForSequenceClassification:
    torch.manual_seed(0)
    names = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]
    return BertForSequenceClassification(BertConfig(**INPUT, **SIZE, id2label=dict(enumerate(names))))


def gpt2(pad_token_id: int | None = 0) -> GPT2ForSequenceClassification:
    torch.manual_seed(0)
    config = GPT2Config(**INPUT | {"pad_token_id": pad_token_id}, n_embd=16, n_layer=2, n_head=2)
    return GPT2ForSequenceClassification(config)


def logits_one_by_one(model, tokenizer, texts: list[str]) -> torch.Tensor:
    """The slow reference: no padding, no batch, no truncation."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits for text in texts])


@pytest.mark.parametrize("build", [distilbert, bert_with_six_labels, gpt2])
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_a_score_is_the_logit_of_the_text_alone(build, batch_size, tokenizer):
    model = build()
    expected = logits_one_by_one(model, tokenizer, TEXTS)[:, 1].tolist()
    scores = ClassifierReward(model, tokenizer, 1, batch_size=batch_size).score(TEXTS)
    assert scores == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 3) for score in scores}) == len(TEXTS)  # so a wrong order would show


def ending_in_eos() -> PreTrainedTokenizerFast:
    """A tokenizer without a pad token, which ends every text with EOS."""
    tokenizer = classifier_tokenizer()
    ends = TemplateProcessing(single="$A [UNK]", special_tokens=[("[UNK]", 1)])
    tokenizer.backend_tokenizer.post_processor = ends
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="[UNK]", bos_token="[CLS]")


@pytest.mark.parametrize("pad_token_id", [0, 1, 7, None, 11])  # 11 is beyond the vocabulary
@pytest.mark.parametrize("tokenizer", [classifier_tokenizer(), ending_in_eos()], ids=["pads with 0", "ends with 1"])
def test_the_last_token_is_found_whatever_the_pad_tokens_of_config_and_tokenizer(pad_token_id, tokenizer):
    expected = logits_one_by_one(gpt2(pad_token_id), tokenizer, TEXTS)[:, 1].tolist()
    assert ClassifierReward(gpt2(pad_token_id), tokenizer, 1).score(TEXTS) == pytest.approx(expected, abs=1e-5)


def test_a_text_without_tokens_has_one_score_and_a_model_that_cannot_be_padded_is_refused(tokenizer):
    words = PreTrainedTokenizerFast(tokenizer_object=word_tokenizer(WORDS).backend_tokenizer, pad_token="[PAD]")
    reward = ClassifierReward(gpt2(), words, 1)
    assert reward.score([""]) == pytest.approx(reward.score(["", "good film"])[:1], abs=1e-5)
    nothing = PreTrainedTokenizerFast(tokenizer_object=words.backend_tokenizer)
    with pytest.raises(UserError, match="neither the config of GPT2.* nor its tokenizer names a token to pad"):
        ClassifierReward(gpt2(None), nothing, 1)
    torch.manual_seed(0)  # XLNet reads its answer at the last place
    xlnet = XLNetForSequenceClassification(XLNetConfig(vocab_size=11, d_model=16, n_layer=1, n_head=2, d_inner=32))
    with pytest.raises(UserError, match="XLNet.*reward.batch_size to 1"):
        ClassifierReward(xlnet, tokenizer, 1)
    expected = logits_one_by_one(xlnet, tokenizer, TEXTS)[:, 1].tolist()
    assert ClassifierReward(xlnet, tokenizer, 1, batch_size=1).score(TEXTS) == pytest.approx(expected, abs=1e-5)


def test_roberta_reads_fewer_tokens_than_it_has_positions(tokenizer):
    torch.manual_seed(0)
    model = RobertaForSequenceClassification(RobertaConfig(**INPUT | {"pad_token_id": 1}, **SIZE))
    reward = ClassifierReward(model, tokenizer, 1)
    most = " ".join(["the film was good", "a bad film", "and a very good film"] * 2)
    end = " ".join(most.split()[-(LENGTH - 3) :])  # with [CLS]; positions 0 and 1 are not for tokens
    expected = logits_one_by_one(model, tokenizer, [end])[0, 1].item()
    assert reward.score([f"good {most}"]) == pytest.approx([expected], abs=1e-5)


def test_prompt_and_completion_are_rated_as_one_text_with_the_sign(tokenizer, tmp_path):
    model = bert_with_six_labels()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reward = load_reward(tmp_path, 0, ["Toxic", "toxicity"], sign=-1)
    whole = logits_one_by_one(model, tokenizer, ["the film was good", "a bad film"])[:, 0]
    rewards = reward(prompts=["the film", "a"], completions=[" was good", " bad film"], label=[0, 1])
    assert rewards == pytest.approx((-whole).tolist(), abs=1e-5)


def test_a_score_is_the_same_in_training_mode_and_a_text_that_is_too_long_keeps_its_end(tokenizer):
    reward = ClassifierReward(distilbert(), tokenizer, 1)
    first = reward.score(TEXTS)
    reward.model.train()  # dropout
    assert reward.score(TEXTS) == first
    end = "good film and a bad film and a very very bad film was the film"
    assert len(tokenizer(end)["input_ids"]) == LENGTH
    assert reward.score([f"the good film was {end}"]) == pytest.approx(reward.score([end]), abs=1e-5)


def test_the_label_is_checked(tokenizer):
    with pytest.raises(UserError, match="label = 2 .*NEGATIVE.*POSITIVE"):
        ClassifierReward(distilbert(), tokenizer, 2)
    with pytest.raises(UserError, match="'NEGATIVE'.*positive.*1: 'POSITIVE'"):
        ClassifierReward(distilbert(), tokenizer, 0, ["positive"])
    ClassifierReward(distilbert(), tokenizer, 1, ["positive"])
    ClassifierReward(distilbert({0: "LABEL_0", 1: "LABEL_1"}), tokenizer, 1, ["positive"])
    with pytest.raises(UserError, match="'LABEL_0'"):  # the generic name of another id is no excuse
        ClassifierReward(distilbert({0: "LABEL_1", 1: "LABEL_0"}), tokenizer, 1, ["positive"])


def language_model(folder):
    GPT2LMHeadModel(GPT2Config(vocab_size=11, n_embd=16, n_layer=1, n_head=2)).save_pretrained(folder)


def damaged_weights(folder):
    distilbert().save_pretrained(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (language_model, "no trained classification head .*score.weight"),
        (damaged_weights, "reward.model = .*does not load"),
    ],
)
def test_what_is_not_a_trained_classifier_in_safetensors_is_refused(write, message, tokenizer, tmp_path):
    write(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message):
        load_reward(tmp_path, 1)


@pytest.mark.parametrize(
    "rewards",
    [
        [1.5, -2],
        (1.5, -2.0),
        np.array([1.5, -2.0], dtype=np.float32),
        torch.tensor([1.5, -2.0], requires_grad=True),
        [torch.tensor(1.5), np.float32(-2)],
        (value for value in (1.5, -2)),
    ],
)
def test_good_rewards_become_floats(rewards):
    checked = check_rewards(rewards, ["a", "b"], [" c", " d"])
    assert checked == [1.5, -2.0] and {type(value) for value in checked} == {float}


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([1.0], "returned 1 values.* each of the 2 episodes"),
        (torch.ones(3), "returned 3 values"),
        (0.5, "returned float.*2 episodes"),
        (None, "returned NoneType"),
        ([1.0, float("nan")], "episode 1 is nan"),
        (np.array([-np.inf, 1.0]), "episode 0 is -inf"),
        (["good", 1.0], "episode 0 is 'good'"),
        ([1.0, None], "episode 1 is None"),
        (torch.ones(2, 1), r"episode 0 is \[1.0\]"),
    ],
)
def test_bad_rewards_name_the_count_or_the_episode(rewards, message):
    with pytest.raises(UserError, match=message):
        check_rewards(rewards, ["a", "b"], [" c", " d"])


def test_a_bad_episode_is_shown_shortened():
    with pytest.raises(UserError, match="Completion: ' short'") as caught:
        check_rewards([None], ["prompt " * 100], [" short"])
    assert len(str(caught.value)) < 300
