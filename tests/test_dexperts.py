import pandas as pd
import pytest
import torch
from tiny import PROMPTS, good_minus_bad, sampling_settings, tiny_policy
from transformers import GPT2Config, GPT2LMHeadModel

from rarlhf_nb.baselines.dexperts import DExperts, nucleus_mask
from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.evaluation.evaluate import evaluate, held_out_log_likelihoods
from rarlhf_nb.lab.profiles import EvaluationSettings
from rarlhf_nb.policy import ActorCritic, Reference

BASE, EXPERT, ANTI_EXPERT = torch.tensor([[2.0, 1, 0, -1], [1, 1.5, 0, 0], [1.5, 0.5, 0, 2]])
STEERED = [0.1142, 0.8438, 0.0420, 0]
FORBIDDEN, EOS = [0, 1], 2  # of the tiny tokenizer


def dexperts(architecture="gpt2", alpha=1.5, top_p=0.7) -> DExperts:
    policies = [tiny_policy(seed, architecture) for seed in (0, 1, 2)]
    for layer in (
        module for policy in policies for module in policy.modules() if isinstance(module, torch.nn.LayerNorm)
    ):
        layer.reset_parameters()  # drawn at random they would outweigh the context
    return DExperts(*policies, alpha, top_p)


def slow_distribution(method: DExperts, ids: list[int], step: int, minimum: int, temperature: float) -> torch.Tensor:
    """The next token's distribution (V,), from one text without padding or cache, with the nucleus word by word."""
    row = torch.tensor([ids])
    z, plus, minus = (policy.model(row).logits[0, -1].double().detach() for policy in method.policies)
    allowed = [v for v in range(len(z)) if v not in FORBIDDEN and not (v == EOS and step < minimum)]
    weights = {v: z[v].exp().item() for v in allowed}
    nucleus, mass = [], 0.0
    for v in sorted(allowed, key=weights.get, reverse=True):
        nucleus.append(v)
        mass += weights[v] / sum(weights.values())
        if mass > method.top_p:
            break
    logits = torch.full_like(z, -torch.inf)
    logits[nucleus] = (z + method.alpha * (plus - minus))[nucleus] / temperature
    return logits.softmax(0)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_forbidden_tokens_take_nothing_of_the_nucleus_and_temperature_divides_the_sum(temperature):
    method = dexperts(alpha=2.0, top_p=0.9)
    z, plus, minus = torch.full((3, 1, 1, 11), -90.0)
    for logits, values in ((z, BASE), (plus, EXPERT), (minus, ANTI_EXPERT)):
        logits[0, 0, 3:7] = values
    z[0, 0, FORBIDDEN] = 60.0  # alone they would be the nucleus
    z[0, 0, EOS] = 60.0
    plus[0, 0, 7:] = 90.0  # an expert wants what the base never says
    sampling = sampling_settings(temperature=temperature)
    # at temperature 2 the base's nucleus would have the fourth token, too
    expected = torch.tensor([[[0.0] * 3 + STEERED + [0.0] * 4]]) ** (1 / temperature)
    probabilities = method.decoding_logits((z, plus, minus), sampling).softmax(-1)
    torch.testing.assert_close(probabilities, expected / expected.sum(), atol=2e-4, rtol=0)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_log_probs_are_those_of_a_slow_reference_without_padding_or_cache(architecture):
    method, sampling = dexperts(architecture), sampling_settings(minimum_completion_length=2)
    batch = method.sample(PROMPTS * 4, sampling, seed=1)
    assert not batch.prompt_mask.all() and not batch.completion_mask.all()  # padding on both sides
    log_probs = batch.log_probs
    expected = torch.zeros_like(log_probs)
    for i, mask in enumerate(batch.completion_mask):
        ids = batch.prompt_ids[i][batch.prompt_mask[i]].tolist()
        for t in range(int(mask.sum())):
            token = batch.completion_ids[i, t].item()
            expected[i, t] = slow_distribution(method, ids, t, minimum=2, temperature=1.0)[token].log()
            ids.append(token)
    assert expected.isfinite().all()  # every token was drawn from the nucleus
    torch.testing.assert_close(log_probs, expected, atol=1e-5, rtol=0)


def test_sampled_frequencies_are_the_log_probs_that_we_claim():
    method = dexperts(alpha=0.5, top_p=0.9)
    sampling = sampling_settings(completion_length=1, minimum_completion_length=0, temperature=0.7)
    drawn = method.sample(["the film is"] * 20_000, sampling, seed=0)
    claimed = drawn.log_probs.exp()
    tokens = drawn.completion_ids.unique()
    assert len(tokens) > 2
    for token in tokens:
        chosen = drawn.completion_ids[:, 0] == token
        assert chosen.float().mean().item() == pytest.approx(claimed[chosen][0].item(), abs=0.012)


def test_without_steering_and_nucleus_it_is_the_base_and_drawn_from_the_seed_alone():
    assert nucleus_mask(torch.randn(4, 3, 5000), 1.0).all()  # whatever the sums round to
    method, sampling = dexperts(alpha=0.0, top_p=1.0), sampling_settings(minimum_completion_length=1, temperature=0.8)
    before = torch.random.get_rng_state()
    own, base = (policy.sample(PROMPTS, sampling, seed=3) for policy in (method, method.base))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert own.completions == base.completions and torch.equal(own.completion_mask, base.completion_mask)
    torch.testing.assert_close(own.log_probs, base.log_probs)


def test_each_model_reads_its_own_prefix():
    method, sampling = dexperts(), sampling_settings(temperature=1e-3)
    with_prefix = dexperts()
    with_prefix.base.prefix_ids, with_prefix.policies[1].prefix_ids = [4, 7], [5]
    batch = with_prefix.sample(PROMPTS, sampling, seed=0)
    assert batch.prompt_ids.equal(method.sample(PROMPTS, sampling, seed=0).prompt_ids)
    ids = torch.cat([batch.prompt_ids, batch.completion_ids], 1)
    mask = torch.cat([batch.prompt_mask, batch.completion_mask], 1)
    logits = [policy(ids, mask, 5)[0] for policy in with_prefix.policies]
    assert with_prefix.decoding_logits(logits, sampling).argmax(-1).equal(batch.completion_ids)


def test_it_is_evaluated_like_any_policy_and_finds_every_human_text_possible():
    method = dexperts(top_p=0.5)
    prompts = pd.DataFrame({"prompt": PROMPTS, "prompt_score": 0.0, "label": 1, "group": "a"})
    settings = EvaluationSettings(held_out_texts=2, held_out_length=8, batch_size=3)
    table = evaluate(method, Reference(method.base), good_minus_bad, prompts, sampling_settings(), settings, seed=0)
    assert table["kl"].notna().all() and len(table) == len(PROMPTS)
    human = held_out_log_likelihoods(method, ["bad plot was very good", "the the film"], length=8, batch_size=2)
    ids = torch.tensor([[4, 9, 8, 10, 3]])
    z, plus, minus = (p.model(ids).logits[0, :-1].detach() for p in method.policies)
    expected = (z + 1.5 * (plus - minus)).log_softmax(-1)[range(4), ids[0, 1:]].sum()
    assert human["log_likelihood"][0] == pytest.approx(expected.item(), abs=1e-4)


def test_experts_must_fit_the_base():
    base, other = tiny_policy(), tiny_policy()
    other.processing_class.add_tokens(["plots"])
    wide = ActorCritic(
        GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=32, n_embd=16, n_layer=1, n_head=2)),
        tiny_policy().processing_class,
    )
    with pytest.raises(UserError, match=r"expert: its tokenizer has another vocabulary.*11 and 12 tokens"):
        DExperts(other, base, base, alpha=1.0)
    with pytest.raises(UserError, match=r"the anti_expert scores a vocabulary of 16 tokens, the base one of 11"):
        DExperts(base, base, wide, alpha=1.0)
    with pytest.raises(UserError, match="the model's context holds 32"):
        DExperts(base, base, base, alpha=1.0).sample(["film " * 30], sampling_settings(), seed=0)
