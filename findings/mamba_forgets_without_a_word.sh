#!/usr/bin/env bash
# Surprise: Mamba takes `past_key_values=cache` without an error, and reads the next token as if nothing stood before it.
# Guess: an argument that a model does not know is a TypeError, or the cache is used.
# Versions: transformers 5.23.0, torch 2.13.0
# Behaviour: its cache is called `cache_params`; `past_key_values` vanishes in **kwargs. A sampling loop of one's own, which
#   runs on all attention models, then draws every token from the one before it.
# Seen: the next token's logits equal those of the whole text: False; those of the last token alone: True
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

python_with torch==2.13.0 transformers==5.23.0 <<'PYTHON'
import torch
from transformers import MambaConfig, MambaForCausalLM

torch.manual_seed(0)
model = MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1)).eval()
with torch.no_grad():
    cache = model(torch.tensor([[5, 6, 7]]), use_cache=True).cache_params
    found = model(torch.tensor([[8]]), past_key_values=cache).logits[:, -1]
    whole = model(torch.tensor([[5, 6, 7, 8]])).logits[:, -1]
    alone = model(torch.tensor([[8]])).logits[:, -1]
same_as_whole, same_as_alone = torch.allclose(found, whole, atol=1e-5), torch.allclose(found, alone, atol=1e-5)
print(f"the next token's logits equal those of the whole text: {same_as_whole}; those of the last token alone: {same_as_alone}")
assert (same_as_whole, same_as_alone) == (False, True), "behaviour changed: the cache is used, or refused"
PYTHON
