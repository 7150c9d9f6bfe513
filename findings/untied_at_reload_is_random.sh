#!/usr/bin/env bash
# Surprise: `from_pretrained(folder, tie_word_embeddings=False)` of a tied model gives it a random output layer.
# Guess: untying copies: both layers start from the one matrix that was saved.
# Versions: transformers 5.23.0, torch 2.13.0
# Behaviour: only the embedding is in the file, so that the output layer counts as missing and is drawn anew. The load
#   report names it, as a table in the log; nothing is raised, and a log level of "error" hides it.
# Seen: output layer is the saved matrix: tied True, untied False; logits of one text correlate at 0.0
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

python_with torch==2.13.0 transformers==5.23.0 <<'PYTHON'
import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = dict(vocab_size=500, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
saved = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True)).eval()
saved.save_pretrained("model")
tied = LlamaForCausalLM.from_pretrained("model")
untied = LlamaForCausalLM.from_pretrained("model", tie_word_embeddings=False)
same = [torch.equal(model.lm_head.weight, saved.lm_head.weight) for model in (tied, untied)]
with torch.no_grad():
    logits = [model(torch.tensor([[5, 6, 7]])).logits[0, -1] for model in (saved, untied)]
correlation = torch.corrcoef(torch.stack(logits))[0, 1].item()
print(f"output layer is the saved matrix: tied {same[0]}, untied {same[1]}; logits of one text correlate at {correlation:.1f}")
assert same == [True, False] and abs(correlation) < 0.3, "behaviour changed: untying keeps the matrix"
PYTHON
