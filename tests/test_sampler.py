import numpy as np
import pytest
import torch
from tiny import PROMPTS, sampling_settings, tiny_policy

from rarlhf_nb.policy import evaluate_tokens
from rarlhf_nb.sampling import (
    Completions,
    SampledLogProbs,
    forbidden_tokens,
    invert_distribution,
    sampler_logits,
    token_entropy,
    token_log_probs,
)
from rarlhf_nb.seeding import uniforms


def test_a_token_is_drawn_by_inverting_the_distribution_function():
    probabilities = torch.tensor([[0.0, 0.25, 0.5, 0.0, 0.25, 0.0]]).expand(6, -1)
    numbers = torch.tensor([0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53], dtype=torch.float64)
    drawn = invert_distribution(probabilities, numbers)
    assert drawn.tolist() == [1, 1, 2, 2, 4, 4]
    with pytest.raises(FloatingPointError, match="not finite"):
        invert_distribution(probabilities * float("nan"), torch.zeros(6).double())


def test_the_numbers_of_a_place_depend_on_nothing_else():
    whole = uniforms(7, 0, 6, 5)
    assert (whole[2:5] == uniforms(7, 2, 3, 5)).all() and (whole[:, :3] == uniforms(7, 0, 6, 3)).all()
    assert len(set(whole.ravel().tolist())) == 30 and (whole != uniforms(8, 0, 6, 5)).all()


def test_completions_end_with_eos_and_the_batch_with_its_last_episode():
    script = torch.tensor([[5, 2, 6, 6], [2, 5, 5, 5], [5, 5, 2, 5]])  # the tokens that are all but certain; EOS is 2

    def draw(*eos_ids):
        completions = Completions(np.full((3, 4), 0.5), eos_ids, 0, torch.device("cpu"))
        while completions.growing:
            step = completions.length
            likely = torch.nn.functional.one_hot(script[:, step : step + 1], 8)
            completions.append(50 * likely.float(), torch.arange(3.0).unsqueeze(1) + step)
        return completions.tensors()

    ids, mask, log_probs, values, _ = draw(2)
    assert ids.tolist() == [[5, 2, 0], [2, 0, 0], [5, 5, 2]]
    assert mask.tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    assert values.tolist() == [[0, 1, 0], [1, 0, 0], [2, 3, 4]] and (log_probs[~mask] == 0).all()
    unended, all_real, *_ = draw()
    assert unended.equal(script) and all_real.all()
    script[2, 1] = 6  # another token that ends a completion
    assert draw(2, 6)[0].tolist() == [[5, 2], [2, 0], [5, 6]]


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("prefix_ids", [[], [4, 7]])
def test_the_sampler_knows_what_a_second_reading_would_find(architecture, prefix_ids):
    policy = tiny_policy(architecture=architecture, dtype=torch.float64)
    policy.prefix_ids = prefix_ids
    torch.nn.init.normal_(policy.value_head.weight)
    sampling = sampling_settings(minimum_completion_length=2, temperature=0.7)
    episodes = policy.sample(PROMPTS * 4, sampling, seed=1)
    mask = episodes.completion_mask
    assert not episodes.prompt_mask.all() and not mask.all()  # padding on both sides
    with torch.no_grad():
        read = evaluate_tokens(policy, episodes, sampling)
        logits, _ = policy(
            torch.cat([episodes.prompt_ids, episodes.completion_ids], 1),
            torch.cat([episodes.prompt_mask, mask], 1),
            mask.shape[1],
        )
    logits = sampler_logits(logits, sampling, policy.forbidden_ids, policy.eos_ids)
    exactly = {"atol": 1e-9, "rtol": 0}
    plain = token_log_probs(logits, episodes.completion_ids).masked_fill(~mask, 0.0)
    torch.testing.assert_close(episodes.log_probs, plain, **exactly)
    torch.testing.assert_close(episodes.entropy, token_entropy(logits).masked_fill(~mask, 0.0), **exactly)
    torch.testing.assert_close(read.log_probs, plain, **exactly)
    torch.testing.assert_close(episodes.values, read.values, atol=1e-6, rtol=0)
    assert read.values.abs().max() > 0.1


def test_a_batch_in_parts_is_the_same_batch():
    policy, sampling = tiny_policy(dtype=torch.float64), sampling_settings()
    whole = policy.sample(PROMPTS, sampling, seed=3)
    parts = [policy.sample(PROMPTS[at : at + 3], sampling, seed=3, first=at) for at in range(0, len(PROMPTS), 3)]
    assert [text for part in parts for text in part.completions] == whole.completions
    assert len(set(policy.sample(["the film is"] * 8, sampling, seed=3).completions)) > 1  # places differ


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_log_probs_in_the_memory_of_the_logits_are_the_plain_ones(temperature):
    sampling = sampling_settings(minimum_completion_length=2, temperature=temperature)
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(3, 5, 11, generator=generator, dtype=torch.float64) * 3
    ids = torch.randint(3, 11, (3, 5), generator=generator)
    slopes = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    weight = torch.eye(11, dtype=torch.float64).requires_grad_()
    gradients = []
    for fused in (False, True):
        logits = given @ weight
        if fused:
            masked = forbidden_tokens(logits, sampling, [0, 1], eos_ids=[2])
            log_probs = SampledLogProbs.apply(logits, ids, masked, temperature)
        else:
            log_probs = token_log_probs(sampler_logits(logits, sampling, [0, 1], eos_ids=[2]), ids)
        gradients.append((log_probs.detach(), *torch.autograd.grad((slopes * log_probs).sum(), weight)))
    for plain, fused in zip(*gradients, strict=True):
        torch.testing.assert_close(fused, plain)
