"""The plan's arithmetic against what torch and transformers count."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import PROMPTS, sampling_settings, tiny_policy
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, GPTJConfig, LlamaConfig

from rarlhf_nb.training.costs import Shape, causal_lm, forward_flops, iteration_flops, update_flops

CONFIGS = {
    "gpt2": GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=2, n_head=2),
    "gptj": GPTJConfig(vocab_size=40, n_positions=32, n_embd=16, n_layer=2, n_head=2, rotary_dim=4),
    "llama": LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32,
    ),
}  # fmt: skip
SHAPE = Shape(batch_size=3, prompt_length=6, completion_length=5, epochs=1)


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


def built(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def scored(model, rows=SHAPE.batch_size):
    ids = torch.ones(rows, SHAPE.length, dtype=torch.long)
    return model(ids, logits_to_keep=SHAPE.completion_length + 1, use_cache=False).logits


def counted(work):
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def test_the_parameters_are_the_models(config):
    assert causal_lm(config).parameters == built(config).num_parameters()


def test_generation_is_counted_as_torch_counts_it(config):
    model, ids = built(config), torch.ones(SHAPE.batch_size, SHAPE.prompt_length, dtype=torch.long)
    length = SHAPE.completion_length
    work = lambda: model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, min_new_tokens=length
    )  # noqa: E731
    assert counted(work) == pytest.approx(iteration_flops(config, SHAPE).generate, rel=0.01)


def test_scoring_and_update_are_counted_as_torch_counts_them(config):
    model, costs = built(config), iteration_flops(config, SHAPE)
    with torch.no_grad():
        assert 2 * counted(lambda: scored(model)) == pytest.approx(costs.score, rel=0.01)
    assert counted(lambda: scored(model).sum().backward()) == pytest.approx(costs.update, rel=0.01)
