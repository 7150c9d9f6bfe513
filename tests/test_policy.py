import builtins
import copy
import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import PROMPTS, sampling_settings, tiny_policy
from transformers import AutoModelForCausalLM

from rarlhf_nb.errors import UserError
from rarlhf_nb.policy import (
    VALUE_HEAD,
    Reference,
    evaluate_tokens,
    load_policy,
    use_gradient_checkpointing,
)
from rarlhf_nb.ppo import episode_kl
from rarlhf_nb.sampling import sampler_logits, token_entropy, token_log_probs
from rarlhf_nb.settings import LoraSettings


def test_columns_that_are_padding_everywhere_are_not_read(monkeypatch):
    policy, sampling = tiny_policy(), sampling_settings(minimum_completion_length=0)
    batch = policy.sample(PROMPTS * 8, sampling, seed=3)
    short = batch.take((batch.completion_mask.sum(1) <= 2).nonzero().squeeze(1))
    assert len(short) > 1
    whole = evaluate_tokens(policy, batch, sampling).log_probs[(batch.completion_mask.sum(1) <= 2)]
    forward, read = policy.forward, []
    monkeypatch.setattr(policy, "forward", lambda *args: read.append(args) or forward(*args))
    found = evaluate_tokens(policy, short, sampling).log_probs
    ids, mask, _ = read[0]
    assert mask.any(0).all() and ids.shape[1] < batch.prompt_ids.shape[1] + batch.completion_ids.shape[1]
    torch.testing.assert_close(found, whole, atol=1e-6, rtol=0)


def test_sampling_is_seeded_and_leaves_the_global_state_alone():
    policy = tiny_policy()
    before = torch.random.get_rng_state()
    one, two = (policy.sample(PROMPTS, sampling_settings(), seed=4) for _ in range(2))
    other = policy.sample(PROMPTS, sampling_settings(), seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert one.completions == two.completions != other.completions


def test_sampled_frequencies_are_the_log_probs_that_we_claim():
    policy = tiny_policy()
    sampling = sampling_settings(completion_length=1, minimum_completion_length=1, temperature=0.7)
    # a checkpoint's own generation settings must not leak into the sampler
    drawn = policy.sample(["the film is"] * 20_000, sampling, seed=0)
    claimed = evaluate_tokens(policy, drawn, sampling).log_probs.exp()
    for token in drawn.completion_ids.unique():
        chosen = drawn.completion_ids[:, 0] == token
        assert chosen.float().mean().item() == pytest.approx(claimed[chosen][0].item(), abs=0.012)
    assert not torch.isin(drawn.completion_ids, torch.tensor([0, 1, 2])).any()  # pad, unknown, EOS are forbidden


def test_eos_ends_a_completion_and_is_counted():
    sampling = sampling_settings(minimum_completion_length=2)
    batch = tiny_policy().sample(PROMPTS * 8, sampling, seed=3)
    assert batch.completion_mask.sum(1).min() >= 3  # two words at least before EOS
    for completion, ids, mask in zip(batch.completions, batch.completion_ids, batch.completion_mask, strict=True):
        ended = ids[mask][-1] == 2
        assert len(completion.split()) == mask.sum() - ended.long()  # EOS is no text
        assert completion.startswith(" ")  # its own space


def test_rows_without_a_token_are_never_sampled_and_have_no_probability():
    policy = tiny_policy()
    tokens = len(policy.processing_class)
    policy.model.resize_token_embeddings(tokens + 5, mean_resizing=False)  # as in GPT-J
    policy.model.get_input_embeddings().weight.data[tokens:] = 10 * policy.model.get_input_embeddings().weight[3]
    drawn = policy.sample(PROMPTS * 20, sampling_settings(), seed=1)
    assert drawn.completion_ids.max() < tokens
    logits = sampler_logits(torch.zeros(1, 1, tokens + 5), sampling_settings(), policy.forbidden_ids, policy.eos_ids)
    assert logits.softmax(-1)[0, 0, tokens:].sum() == 0


def test_moving_mass_to_a_forbidden_token_gains_nothing():
    """The trap: with unmasked log-probabilities this policy's KL would be negative and paid out as reward."""
    policy, sampling = tiny_policy(), sampling_settings()
    reference = Reference(policy)
    greedy_for_eos = copy.deepcopy(policy)
    head = torch.nn.Linear(16, 11, bias=True)
    head.weight.data, head.bias.data = policy.model.lm_head.weight.data.clone(), torch.zeros(11)
    head.bias.data[2] = 6.0  # nearly all probability on EOS, which the sampler forbids
    greedy_for_eos.model.lm_head = head
    batch = greedy_for_eos.sample(PROMPTS, sampling, seed=0)
    log_probs = evaluate_tokens(greedy_for_eos, batch, sampling).log_probs
    kl = episode_kl(log_probs, reference.token_log_probs(batch, sampling), batch.completion_mask)
    torch.testing.assert_close(kl, torch.zeros_like(kl), atol=1e-4, rtol=0)


def test_entropy_and_log_probs_by_hand():
    logits = torch.tensor([[[0.5, 0.3, 0.2]]], dtype=torch.float64).log()
    assert token_entropy(logits).item() == pytest.approx(1.02965, abs=1e-5)
    assert token_log_probs(logits + 3, torch.tensor([[1]])).exp().item() == pytest.approx(0.3)
    masked = sampler_logits(torch.zeros(1, 2, 4), sampling_settings(minimum_completion_length=1), [0], eos_ids=[3])
    assert masked.softmax(-1).tolist() == [[[0, 0.5, 0.5, 0], [0, pytest.approx(1 / 3), *[pytest.approx(1 / 3)] * 2]]]
    assert token_entropy(masked)[0, 0].item() == pytest.approx(0.6931, abs=1e-4)


def test_a_saved_policy_is_a_hub_folder_and_loads_as_it_was(tmp_path):
    policy, sampling = tiny_policy(), sampling_settings()
    policy.save(tmp_path / "one")
    batch = policy.sample(PROMPTS, sampling, seed=1)
    policy.save(tmp_path / "other")
    assert VALUE_HEAD in {file.name for file in (tmp_path / "one").iterdir()}
    for file in (tmp_path / "one").iterdir():  # nothing tells whether the policy has sampled
        assert file.suffix != ".bin" and file.read_bytes() == (tmp_path / "other" / file.name).read_bytes(), file.name
    ids = torch.cat([batch.prompt_ids, batch.completion_ids], 1)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    torch.testing.assert_close(plain(ids).logits, policy.model(ids).logits)
    one, other = (evaluate_tokens(p, batch, sampling) for p in (policy, load_policy(tmp_path / "one")))
    torch.testing.assert_close(one.log_probs, other.log_probs)
    torch.testing.assert_close(one.values, other.values)


def test_weights_that_are_damaged_are_refused(tmp_path):
    tiny_policy().save(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="policy.model = .*does not load"):
        load_policy(tmp_path)


def test_weights_that_are_missing_are_named_instead_of_drawn_at_random(tmp_path):
    tiny_policy(architecture="llama").save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"is no whole causal language model: its files lack lm_head.weight"):
        load_policy(tmp_path)


def test_code_beside_a_model_is_never_run_nor_asked_about(tmp_path, monkeypatch):
    tiny_policy().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')")
    monkeypatch.setattr(builtins, "input", lambda question: "y")
    with pytest.raises(UserError, match="custom code"):
        load_policy(tmp_path)
    assert not (tmp_path / "was_run").exists()


def test_a_tokenizer_without_pad_token_pads_with_eos(tmp_path):
    policy = tiny_policy()
    policy.processing_class.pad_token = None
    policy.save(tmp_path)
    loaded = load_policy(tmp_path)
    assert loaded.processing_class.pad_token == "[EOS]"
    assert len(loaded.sample(PROMPTS, sampling_settings(), seed=0)) == len(PROMPTS)


def test_lora_reference_is_the_same_network_with_the_adapter_off(tmp_path):
    base, sampling = tiny_policy(), sampling_settings()
    base.save(tmp_path / "base")
    policy = load_policy(tmp_path / "base", lora=LoraSettings(r=2, alpha=4), seed=1)
    assert isinstance(policy.model, peft.PeftModel)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.5)
    batch = policy.sample(PROMPTS, sampling, seed=1)
    expected = evaluate_tokens(base, batch, sampling).log_probs
    torch.testing.assert_close(Reference(policy).token_log_probs(batch, sampling), expected)
    own = evaluate_tokens(policy, batch, sampling).log_probs
    assert (own - expected).abs().max() > 0.1
    policy.save(tmp_path / "merged")
    merged = load_policy(tmp_path / "merged")
    torch.testing.assert_close(evaluate_tokens(merged, batch, sampling).log_probs, own, atol=1e-4, rtol=0)
    assert set(load_file(tmp_path / "merged" / VALUE_HEAD)) == {"weight", "bias"}


def test_a_policy_is_loaded_with_the_fused_gelu_which_is_the_same_function(tmp_path):
    tiny_policy().save(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace("gelu_pytorch_tanh", "gelu_new"))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    policy, ids = load_policy(tmp_path, dtype=torch.float64), torch.tensor([[3, 6, 5, 7, 4]])
    acts = [type(model.transformer.h[1].mlp.act).__name__ for model in (plain, policy.model)]
    assert acts == ["NewGELUActivation", "GELUTanh"]
    torch.testing.assert_close(policy.model(ids).logits, plain(ids).logits, atol=1e-12, rtol=0)


def gradients_and_saved_bytes(policy, batch):
    """The gradient of a loss on all log-probabilities and values, and the bytes that autograd kept for it."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        now = evaluate_tokens(policy, batch, sampling_settings())
        loss = now.log_probs.sin().sum() + now.values.square().sum()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in policy.named_parameters() if parameter.grad is not None}
    return gradients, sum(size for place, size in kept.items() if place not in weights)


@pytest.mark.parametrize("lora", [None, LoraSettings(r=2, alpha=4)])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_gradient_checkpointing_keeps_less_for_the_same_gradients(architecture, lora, tmp_path):
    tiny_policy(architecture=architecture).save(tmp_path)
    plain, thrifty = (load_policy(tmp_path, lora, seed=1, gradient_checkpointing=on) for on in (False, True))
    batch = plain.sample(PROMPTS, sampling_settings(), seed=1)
    assert thrifty.sample(PROMPTS, sampling_settings(), seed=1).completions == batch.completions
    (expected, all_bytes), (found, fewer_bytes) = (gradients_and_saved_bytes(p, batch) for p in (plain, thrifty))
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert max(gradient.abs().max() for gradient in expected.values()) > 0.01
    assert fewer_bytes < 0.5 * all_bytes


def test_under_gradient_checkpointing_the_sampler_keeps_its_cache_and_a_copy_has_its_own_blocks(monkeypatch):
    policy = tiny_policy()
    use_gradient_checkpointing(policy.model)
    reference, find, read = Reference(policy), policy.logits_and_values, []
    monkeypatch.setattr(policy, "logits_and_values", lambda ids, *args: read.append(ids.shape[1]) or find(ids, *args))
    batch = policy.sample(PROMPTS, sampling_settings(), seed=1)
    assert read[1:] == [1] * 4  # every token after the prompt is read alone
    before = evaluate_tokens(policy, batch, sampling_settings()).log_probs
    for parameter in policy.parameters():
        parameter.data.zero_()
    torch.testing.assert_close(reference.token_log_probs(batch, sampling_settings()), before, atol=0, rtol=0)


def test_a_model_without_blocks_to_checkpoint_is_named():
    with pytest.raises(UserError, match="policy.gradient_checkpointing: Linear does not support it"):
        use_gradient_checkpointing(torch.nn.Linear(2, 2))
