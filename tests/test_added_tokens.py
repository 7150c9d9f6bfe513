"""Tokens that a tokenizer adds to every text by itself: those before it are read first, those after it are not read."""

import pytest
import torch
from tiny import PROMPTS, sampling_settings, tiny_policy
from tokenizers.processors import TemplateProcessing

from rarlhf_nb.baselines.prompted import prompted_policy
from rarlhf_nb.lab.evaluation.evaluate import held_out_log_likelihoods
from rarlhf_nb.policy import evaluate_tokens

TEMPLATES = {"BOS": "[BOS] $A", "EOS": "$A [EOS]", "both": "[BOS] $A [EOS]", "neither": "$A"}
BOS, EOS = 7, 2


def policy_of(template):
    """A tiny policy whose tokenizer adds tokens by itself; it has no `bos_token`."""
    policy = tiny_policy(architecture="llama")
    added = TemplateProcessing(single=template, special_tokens=[("[BOS]", BOS), ("[EOS]", EOS)])
    policy.processing_class.backend_tokenizer.post_processor = added
    return policy


def words(policy, text):
    return policy.processing_class(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("prefix", ["", "very good "])
def test_an_episode_is_bos_prefix_prompt_and_completion(template, prefix):
    """Row by row, without padding or cache."""
    policy, sampling = policy_of(template), sampling_settings()
    policy = prompted_policy(policy, prefix) if prefix else policy
    bos = [BOS] if "BOS" in template else []
    batch = policy.sample(PROMPTS, sampling, seed=1)
    assert batch.prompt_ids[batch.prompt_mask].tolist() == sum((bos + words(policy, text) for text in PROMPTS), [])
    read = evaluate_tokens(policy, batch, sampling)
    for i, (prompt, completion) in enumerate(zip(PROMPTS, batch.completion_ids.tolist(), strict=True)):
        whole = torch.tensor([bos + words(policy, prefix + prompt) + completion])
        logits = policy.model(whole).logits[:, -6:-1]
        logits[..., policy.forbidden_ids + [EOS]] = -torch.inf
        slow = logits.log_softmax(-1)[0, range(5), completion]
        torch.testing.assert_close(read.log_probs[i], slow, atol=1e-5, rtol=0)
        torch.testing.assert_close(batch.log_probs[i], slow, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prefix", ["", "very good "])
def test_held_out_texts_begin_as_the_tokenizer_begins_every_text(prefix):
    policy, texts = policy_of("[BOS] $A [EOS]"), ["bad plot", "the film is very good"]
    policy = prompted_policy(policy, prefix) if prefix else policy
    table = held_out_log_likelihoods(policy, texts, length=5, batch_size=2)
    assert table["tokens"].tolist() == [2, 4]
    for text, found, tokens in table.itertuples(index=False):
        before, own = [BOS, *words(policy, prefix)], words(policy, text)[:tokens]
        log_probs = policy.model(torch.tensor([before + own])).logits.log_softmax(-1)[0]
        slow = sum(log_probs[len(before) + i - 1, token].item() for i, token in enumerate(own))
        assert found == pytest.approx(slow, abs=1e-5)
