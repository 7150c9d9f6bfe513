#!/usr/bin/env bash
# Surprise: with LoRA's start "pissa" or "olora", the model with its adapter switched off is not the model one began with.
# Guess: `disable_adapter()` gives the base model, so that it can be the reference of a KL.
# Versions: peft 0.21.2, transformers 5.23.0, torch 2.13.0
# Behaviour: these starts move a part of each weight into the adapter and leave the rest in the base. On: the old model;
#   off: the old model without its main directions. A KL to "adapter off" is not 0 before the first step, and pulls there.
# Seen (largest change of a logit against the base model, adapter on / off):
#   True: 0.000 / 0.000    pissa: 0.000 / 0.111    olora: 0.000 / 0.193
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

python_with torch==2.13.0 transformers==5.23.0 peft==0.21.2 <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
ids, off = torch.arange(3, 15).reshape(2, 6), {}
for start in (True, "pissa", "olora"):
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
    with torch.no_grad():
        before = base(ids).logits
        lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=4, init_lora_weights=start)
        model = get_peft_model(base, lora).eval()
        on = (model(ids).logits - before).abs().max().item()
        with model.disable_adapter():
            off[start] = (model(ids).logits - before).abs().max().item()
    print(f"{start}: {on:.3f} / {off[start]:.3f}")
    assert on < 1e-5, "behaviour changed: the adapted model no longer begins as the base model"
assert off[True] < 1e-5 and min(off["pissa"], off["olora"]) > 1e-2, "behaviour changed: adapter off is the base model"
PYTHON
