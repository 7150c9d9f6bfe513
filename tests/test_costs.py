"""The arithmetic of costs against what torch, transformers and peft count on real models."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    DistilBertConfig,
    DynamicCache,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
)

from benchmarks.costs import (
    Shape,
    activation_bytes,
    cache_bytes,
    causal_lm,
    iteration_flops,
    memory,
    network_bytes,
    trained_bytes,
)
from rarlhf_nb.errors import UserError

CONFIGS = {
    "gpt2": GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=2, n_head=2),
    "gptj": GPTJConfig(vocab_size=40, n_positions=32, n_embd=16, n_layer=2, n_head=2, rotary_dim=4),
    "llama": LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
    ),
}
SHAPE = Shape(batch_size=3, prompt_length=6, completion_length=5, epochs=1)
LORA = replace(SHAPE, lora_rank=2)


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


def built(config, attention="eager"):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


def with_adapter(config):
    adapter = LoraConfig(r=LORA.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(built(config), adapter)
    model.enable_input_require_grads()  # otherwise the first block's inputs have no gradient
    return model


def scored(model, rows=SHAPE.batch_size):
    ids = torch.ones(rows, SHAPE.length - 1, dtype=torch.long)  # nothing is read off the last token
    return model(input_ids=ids, logits_to_keep=SHAPE.completion_length, use_cache=False).logits


def counted(work):
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def test_the_parameters_are_the_models(config):
    assert causal_lm(config).parameters == built(config).num_parameters()


def test_generation_is_counted_as_torch_counts_it(config):
    model, ids = built(config), torch.ones(SHAPE.batch_size, SHAPE.prompt_length, dtype=torch.long)
    length = SHAPE.completion_length
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": length, "min_new_tokens": length}
    assert counted(lambda: model.generate(ids, **settings)) == pytest.approx(
        iteration_flops(config, SHAPE).generate, rel=0.01
    )


def test_scoring_and_update_are_counted_as_torch_counts_them(config):
    model, costs = built(config), iteration_flops(config, SHAPE)
    with torch.no_grad():
        once = counted(lambda: scored(model))
    assert once == pytest.approx(costs.score, rel=0.01)
    assert 2 * once == pytest.approx(iteration_flops(config, replace(SHAPE, weight_bytes=2)).score, rel=0.01)
    assert counted(lambda: scored(model).sum().backward()) == pytest.approx(costs.update, rel=0.01)


def test_an_adapters_update_is_counted_as_torch_counts_it(config):
    model = with_adapter(config)
    assert counted(lambda: scored(model).sum().backward()) == pytest.approx(
        iteration_flops(config, LORA).update, rel=0.01
    )


def test_checkpointing_adds_the_forward_pass_that_torch_counts(config):
    model = built(config).train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": True})  # the other kind stops short of the last product
    shape = replace(SHAPE, gradient_checkpointing=True)
    assert counted(lambda: scored(model).sum().backward()) == pytest.approx(
        iteration_flops(config, shape).update, rel=0.01
    )


def test_the_update_pays_for_kept_episodes_and_epochs_alone(config):
    whole = iteration_flops(config, SHAPE)
    tail = iteration_flops(config, replace(SHAPE, kept=1, epochs=4))
    assert tail.update == pytest.approx(whole.update * 4 / 3)
    assert (tail.generate, tail.score) == (whole.generate, whole.score)


def test_the_reward_model_is_counted_as_torch_counts_it(config):
    classifier = DistilBertConfig(vocab_size=40, dim=16, n_layers=2, n_heads=2, hidden_dim=24)
    model = AutoModel.from_config(classifier, attn_implementation="eager")
    ids = torch.ones(SHAPE.batch_size, SHAPE.length, dtype=torch.long)
    more = iteration_flops(config, SHAPE, classifier).score - iteration_flops(config, SHAPE).score
    assert counted(lambda: model(ids)) == pytest.approx(more, rel=0.01)


def test_the_cache_is_as_large_as_a_real_one(config):
    cache = DynamicCache(config=config)
    ids = torch.ones(SHAPE.batch_size, SHAPE.length - 1, dtype=torch.long)
    built(config)(ids, past_key_values=cache, use_cache=True)
    size = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
    assert cache_bytes(causal_lm(config), SHAPE) == size


@pytest.mark.parametrize("shape", [SHAPE, LORA])
def test_gradients_and_moments_are_as_large_as_adams(config, shape):
    model = built(config) if shape is SHAPE else with_adapter(config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained)
    scored(model).sum().backward()
    optimizer.step()
    moments = sum(state[key].nbytes for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq"))
    held = memory(causal_lm(config), shape)
    assert (held.gradients, held.moments) == (sum(parameter.nbytes for parameter in trained), moments)


def test_activations_are_about_what_autograd_keeps():
    shape = replace(SHAPE, prompt_length=20)
    config = GPT2Config(
        vocab_size=40, n_positions=32, n_embd=64, n_layer=4, n_head=2, activation_function="gelu",
        resid_pdrop=0, attn_pdrop=0, embd_pdrop=0,
    )  # fmt: skip
    model, kept = built(config, "sdpa"), {}
    weights = {parameter.data_ptr() for parameter in model.parameters()}

    def keep(tensor):
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ids = torch.ones(shape.batch_size, shape.length - 1, dtype=torch.long)
        output = model(ids, logits_to_keep=1, use_cache=False)
    assert output.logits.requires_grad
    expected = activation_bytes(causal_lm(config), shape, shape.batch_size)
    assert sum(kept.values()) == pytest.approx(expected, rel=0.15)


def test_a_process_holds_and_sends_its_share(config):
    model = causal_lm(config)
    trained = trained_bytes(model, SHAPE)
    whole, half = memory(model, SHAPE), memory(model, SHAPE, "ZeRO-2", 2)
    assert (half.weights, half.gradients, half.moments) == (whole.weights, trained / 2, trained)
    assert network_bytes(model, SHAPE, "FSDP", 1).total == 0
    assert network_bytes(model, SHAPE, "data parallel", 4).update == 2 * trained * 3 / 4
    one_by_one = replace(SHAPE, micro_batch_size=1)
    sharded = network_bytes(model, one_by_one, "FSDP", 2)
    assert sharded.update == 3 * network_bytes(model, SHAPE, "FSDP", 2).update
    assert sharded.generate == SHAPE.completion_length * model.parameters * 4 / 2


@pytest.mark.parametrize("kept", [0, 4])
def test_more_episodes_than_there_are_cannot_be_kept(kept):
    with pytest.raises(UserError, match=f"kept = {kept}"):
        replace(SHAPE, kept=kept)


def test_the_arithmetic_needs_no_torch():
    code = "import sys, benchmarks.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
