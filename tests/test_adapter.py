"""The folder of a LoRA adapter alone, as peft saves it, is a policy."""

import json
from contextlib import nullcontext

import peft
import pytest
import torch
from tiny import PROMPTS, sampling_settings, tiny_policy
from transformers import AutoModelForCausalLM

from benchmarks.architectures import build
from rarlhf_nb.errors import UserError
from rarlhf_nb.policy import load_policy
from rarlhf_nb.settings import LoraSettings


@pytest.fixture
def adapter(tmp_path):
    """An adapter of the policy in tmp_path/base, whose weights are not 0."""
    tiny_policy(architecture="llama").save(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.5, generator=torch.Generator().manual_seed(3))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def rewrite(adapter, **changes):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | changes))


def test_it_is_the_model_that_it_names_with_the_adapter_merged_in(adapter, tmp_path):
    ids = torch.tensor([[3, 6, 5, 7, 4]])
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    before = base(ids).logits
    adapted = peft.PeftModel.from_pretrained(base, str(adapter))(ids).logits
    assert (adapted - before).abs().max() > 0.1
    for lora in (None, LoraSettings(r=2, alpha=4)):  # one more adapter, which starts as none
        policy = load_policy(adapter, lora=lora)
        torch.testing.assert_close(policy.model(ids).logits, adapted, atol=1e-5, rtol=0)
        assert len(policy.sample(PROMPTS, sampling_settings(), seed=1)) == len(PROMPTS)


def test_an_adapter_that_cannot_be_read_or_does_not_fit_is_named(adapter, tmp_path):
    base = str(tmp_path / "base")
    for changes, message in (
        ({"base_model_name_or_path": str(tmp_path / "gone")}, "names in adapter_config.json as .*neither an existing"),
        ({"base_model_name_or_path": None}, "is an adapter without its model, and adapter_config.json names none"),
        ({"base_model_name_or_path": base, "peft_type": "IA3"}, "only LoRA in adapter_model.safetensors is read"),
        ({"base_model_name_or_path": base, "peft_type": "LORA", "r": 3}, "the adapter does not fit the model"),
        ({"r": 2, "target_modules": ["q_proj", "lm_head"]}, "the adapter does not fit .*missing adapter keys"),
    ):
        rewrite(adapter, **changes)
        with pytest.raises(UserError, match=message):
            load_policy(adapter)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(UserError, match="only LoRA in adapter_model.safetensors is read"):
        load_policy(adapter)


@pytest.mark.parametrize(
    "architecture, left_out",
    [
        (
            "jamba",
            "linear layers, those of Mamba blocks and routers: dt_proj, in_proj, out_proj, x_proj",
        ),  # its blocks read weights
        ("phimoe", "of Mamba blocks and routers: router"),  # which returns a tuple
        ("mixtral", None),  # whose experts are no linear layers, and have an adapter all the same
    ],
)
def test_an_adapter_leaves_out_what_it_would_break_and_is_merged_as_it_is(architecture, left_out, tmp_path):
    build(architecture, tmp_path)
    base = load_policy(tmp_path)
    with pytest.warns(UserWarning, match=left_out) if left_out else nullcontext():
        policy = load_policy(tmp_path, LoraSettings(r=2, alpha=4), seed=1)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.3, generator=generator)
    ids = torch.tensor([[13, 16, 15, 17, 14]])
    adapted = policy.model(ids).logits
    with policy.model.disable_adapter():
        torch.testing.assert_close(policy.model(ids).logits, base.model(ids).logits, atol=1e-5, rtol=0)
    assert (adapted - base.model(ids).logits).abs().max() > 0.1
    policy.save(tmp_path / "saved")
    torch.testing.assert_close(load_policy(tmp_path / "saved").model(ids).logits, adapted, atol=1e-3, rtol=0)


def test_a_model_with_the_same_weights_in_several_layers_has_no_adapter(tmp_path):
    build("zamba", tmp_path)
    with pytest.raises(UserError, match="type 'zamba' has the same weights in several places, .* train it without"):
        load_policy(tmp_path, LoraSettings(r=2, alpha=4))
