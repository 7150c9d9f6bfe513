#!/usr/bin/env bash
# Surprise: Falcon-H1 answers `inputs_embeds=model.get_input_embeddings()(ids)` otherwise than `input_ids=ids`.
# Guess: looking the rows up and handing them over is what the model does itself; all the others do so.
# Versions: transformers 5.23.0, torch 2.13.0
# Behaviour: Falcon-H1 scales the rows by `embedding_multiplier` only if it looks them up itself. Granite has a setting of
#   the same name and scales both. Soft prompts, and whatever else hands embeddings over, meet another model.
# Seen:
#   GraniteConfig: largest difference of a logit 0.000
#   FalconH1Config: largest difference of a logit 0.124
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

python_with torch==2.13.0 transformers==5.23.0 <<'PYTHON'
import torch
from transformers import AutoModelForCausalLM, FalconH1Config, GraniteConfig

sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
mamba = dict(mamba_d_ssm=64, mamba_n_heads=8, mamba_d_head=8, mamba_d_state=16, num_key_value_heads=2)
ids, differences = torch.tensor([[5, 6, 7, 8]]), {}
for config in (GraniteConfig(**sizes, embedding_multiplier=5.0), FalconH1Config(**sizes, **mamba, embedding_multiplier=5.0)):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        by_ids = model(input_ids=ids, use_cache=False).logits
        by_rows = model(inputs_embeds=model.get_input_embeddings()(ids), use_cache=False).logits
    name = type(config).__name__
    differences[name] = (by_ids - by_rows).abs().max().item()
    print(f"{name}: largest difference of a logit {differences[name]:.3f}")
assert differences["GraniteConfig"] < 1e-6, "behaviour changed: Granite's two ways differ"
assert differences["FalconH1Config"] > 1e-2, "behaviour changed: Falcon-H1's two ways agree"
PYTHON
