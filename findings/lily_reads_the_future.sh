#!/usr/bin/env bash
# Surprise: with PEFT's Lily adapter a causal model is no longer causal: later tokens, and other texts, change a token.
# Guess: an adapter on the projections is a function of each position alone, as LoRA is.
# Versions: peft 0.21.2, transformers 5.23.0, torch 2.13.0
# Behaviour: Lily's router averages over the whole batch before it chooses its mixture. Log-probabilities of a text therefore
#   use its future, differ alone and in a batch, and differ between cached sampling and one pass: a policy ratio is no 1.
# Seen (largest change of a logit of the first text's first six tokens):
#   LoraConfig: more tokens after them 0.00, another text beside them 0.00
#   LilyConfig: more tokens after them 1.90, another text beside them 2.23
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

python_with torch==2.13.0 transformers==5.23.0 peft==0.21.2 <<'PYTHON'
import torch
from peft import LilyConfig, LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
changes = {}
for kind in (LoraConfig, LilyConfig):
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**sizes, initializer_range=0.2))
    model = get_peft_model(base, kind(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # as after some training
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)
        texts = torch.randint(64, (2, 12))
        first = model(texts[:1, :6]).logits
        longer, beside = model(texts[:1]).logits[:, :6], model(texts[:, :6]).logits[:1]
    changes[kind] = [(other - first).abs().max().item() for other in (longer, beside)]
    print(f"{kind.__name__}: more tokens after them {changes[kind][0]:.2f}, another text beside them {changes[kind][1]:.2f}")
assert max(changes[LoraConfig]) < 1e-4, "behaviour changed: LoRA is not causal"
assert min(changes[LilyConfig]) > 1e-2, "behaviour changed: Lily is causal"
PYTHON
