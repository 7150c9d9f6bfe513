"""Base weights of 8 and 4 bits. What needs bitsandbytes itself, which the lock leaves out, is skipped without it."""

from importlib.machinery import ModuleSpec

import pytest
import torch
from tiny import PROMPTS, ppo_trainer, sampling_settings, tiny_policy
from transformers import AutoModelForCausalLM, GPTJConfig, GPTJForCausalLM

from rarlhf_nb import policy as policy_module
from rarlhf_nb import quantization
from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.experiment import Experiment
from rarlhf_nb.lab.profiles import load_profile
from rarlhf_nb.policy import ActorCritic, Reference, evaluate_tokens, load_policy
from rarlhf_nb.settings import LoraSettings

LORA = LoraSettings(r=2, alpha=4)


def test_quantization_without_an_adapter_is_refused_before_anything_is_loaded():
    with pytest.raises(UserError, match="policy.quantization = '4bit' needs policy.lora"):
        load_profile("pocket", {"policy.quantization": "4bit"})
    with pytest.raises(UserError, match="quantization = '8bit' needs an adapter"):
        load_policy("nowhere", quantization="8bit")
    assert load_profile("imdb-gptj", {"policy.quantization": "8bit"}).policy.quantization == "8bit"
    assert load_profile("imdb-gptj").policy.quantization is None  # the paper's numbers are of bfloat16


def test_a_missing_bitsandbytes_is_named_before_a_run_begins(tmp_path, monkeypatch):
    tiny_policy().save(tmp_path)
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    monkeypatch.setattr("rarlhf_nb.lab.runs.default_root", lambda: tmp_path / "runs")
    eight_bits = {"policy.quantization": "8bit", "policy.lora": {"r": 2, "alpha": 4}}
    for load in (
        lambda: load_policy(tmp_path, LORA, quantization="8bit"),
        lambda: Experiment.open("pocket", "mine", 1, eight_bits),
    ):
        with pytest.raises(UserError, match="policy.quantization = '8bit' needs the package bitsandbytes: pip install"):
            load()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "bits, loaded", [("8bit", ("load_in_8bit",)), ("4bit", ("load_in_4bit", "bnb_4bit_use_double_quant"))]
)
def test_what_transformers_is_asked_for(bits, loaded, tmp_path, monkeypatch):
    tiny_policy().save(tmp_path)
    monkeypatch.setattr(quantization, "find_spec", lambda name: ModuleSpec(name, None))
    load, asked = AutoModelForCausalLM.from_pretrained, {}

    def plain(folder, quantization_config, device_map, **options):
        asked.update(config=quantization_config, device=device_map)
        return load(folder, **options)

    monkeypatch.setattr(policy_module.AutoModelForCausalLM, "from_pretrained", plain)
    policy = load_policy(tmp_path, LORA, torch.bfloat16, quantization=bits)
    assert all(getattr(asked["config"], name) for name in loaded) and asked["device"] in ("cpu", "cuda")
    assert bits == "8bit" or asked["config"].bnb_4bit_compute_dtype == torch.bfloat16
    assert policy.processing_class.pad_token_id == 0


@pytest.fixture
def gptj(tmp_path):
    """A GPT-J whose matrices are large enough for bitsandbytes' kernels, on disk."""
    pytest.importorskip("bitsandbytes")
    tokens = tiny_policy().processing_class
    torch.manual_seed(0)
    config = GPTJConfig(vocab_size=len(tokens), n_positions=32, n_embd=64, n_layer=2, n_head=2, rotary_dim=16)
    ActorCritic(GPTJForCausalLM(config), tokens).save(tmp_path / "gptj")
    return tmp_path / "gptj"


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_an_adapter_learns_on_a_quantized_base_and_its_reference_is_that_base(bits, gptj, tmp_path):
    policy, sampling = load_policy(gptj, LORA, seed=1, quantization=bits), sampling_settings()
    learned = {parameter.dtype for parameter in policy.parameters() if parameter.requires_grad}
    layer = policy.model.get_base_model().transformer.h[0].mlp.fc_in.base_layer
    assert learned == {torch.float32} and layer.weight.element_size() == 1
    batch = policy.sample(PROMPTS, sampling, seed=1)
    base = evaluate_tokens(policy, batch, sampling).log_probs.detach()  # a fresh adapter changes nothing
    trainer = ppo_trainer(policy, learning_rate=3e-2, sampling=sampling)
    for _ in range(3):
        trainer.step(PROMPTS)
    with torch.no_grad():
        now = evaluate_tokens(policy, batch, sampling).log_probs
    torch.testing.assert_close(Reference(policy).token_log_probs(batch, sampling), base, atol=0.02, rtol=0)
    assert (now - base).abs().max() > 0.1
    policy.save(tmp_path / "saved")
    plain = load_policy(tmp_path / "saved")
    assert not hasattr(plain.model.config, "quantization_config")
    torch.testing.assert_close(evaluate_tokens(plain, batch, sampling).log_probs, now, atol=0.05, rtol=0)


def test_a_model_with_transposed_matrices_is_refused(tmp_path):
    pytest.importorskip("bitsandbytes")
    tiny_policy().save(tmp_path)
    with pytest.raises(UserError, match="policy.quantization: GPT2LMHeadModel keeps its matrices transposed"):
        load_policy(tmp_path, LORA, quantization="8bit")
