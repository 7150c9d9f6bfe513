#!/usr/bin/env bash
# Surprise: the mean of a LoRA adapter and itself, by PEFT's combination "linear", is twice the adapter.
# Guess: weights 0.5 and 0.5 of the same adapter are the adapter; weights 1 and -1 of two are their difference.
# Versions: peft 0.21.2, transformers 5.23.0, torch 2.13.0
# Behaviour: "linear" adds the factors A and B, not the products BA, each with the root of its weight: the cross terms
#   come in, (A+A)(B+B)/2 = 2AB. "dare_linear" and "magnitude_prune" do likewise, "ties" gives half. Only "cat" is exact.
# Seen (norm of the result, and of its error, over that of what the weights ask for):
#   linear  one adapter twice: size 2.00, error 1.00; 1 and -1 of two adapters: size 1.46, error 1.02
#   cat     one adapter twice: size 1.00, error 0.00; 1 and -1 of two adapters: size 1.00, error 0.00
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

python_with torch==2.13.0 transformers==5.23.0 peft==0.21.2 <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4, lora_alpha=4)
model = get_peft_model(LlamaForCausalLM(LlamaConfig(**sizes)), lora, adapter_name="one")
model.add_adapter("two", lora)
layer = model.base_model.model.model.layers[0].self_attn.q_proj
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.normal_()
found = {}
for how in ("linear", "cat"):
    for number, (adapters, weights) in enumerate(((["one", "one"], [0.5, 0.5]), (["one", "two"], [1, -1]))):
        model.add_weighted_adapter(adapters, weights, f"{how}{number}", combination_type=how)
        wanted = sum(weight * layer.get_delta_weight(name) for name, weight in zip(adapters, weights))
        given = layer.get_delta_weight(f"{how}{number}")
        size, error = (part.norm() / wanted.norm() for part in (given, given - wanted))
        found[how, number] = size.item(), error.item()
        print(f"{how}, {weights} of {adapters}: size {size:.2f}, error {error:.2f}")
assert abs(found["linear", 0][0] - 2) < 1e-4 and found["linear", 1][1] > 0.5, "behaviour changed: linear has no cross terms"
assert max(found["cat", 0][1], found["cat", 1][1]) < 1e-4, "behaviour changed: cat is not exact"
PYTHON
