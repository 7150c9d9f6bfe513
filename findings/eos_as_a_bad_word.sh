#!/usr/bin/env bash
# Surprise: `bad_words_ids=[[eos]]` forbids nothing: texts end as often as before.
# Guess: EOS is never drawn; `suppress_tokens=[eos]` does the same.
# Versions: transformers 5.23.0, torch 2.13.0
# Behaviour: `generate` takes EOS out of the bad words without a warning; `suppress_tokens` keeps it.
# Seen (texts of 200 that contain EOS): without 92, bad_words_ids 92, suppress_tokens 0
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

python_with torch==2.13.0 transformers==5.23.0 <<'PYTHON'
import torch
from transformers import LlamaConfig, LlamaForCausalLM

EOS = 2
torch.manual_seed(0)
sizes = dict(vocab_size=16, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
model = LlamaForCausalLM(LlamaConfig(**sizes, pad_token_id=0, bos_token_id=1, eos_token_id=EOS)).eval()
prompts, ended = torch.full((200, 1), 4), []
for forbid in ({}, {"bad_words_ids": [[EOS]]}, {"suppress_tokens": [EOS]}):
    torch.manual_seed(0)
    mask = torch.ones_like(prompts)
    texts = model.generate(prompts, attention_mask=mask, max_new_tokens=10, do_sample=True, top_k=0, **forbid)
    ended.append((texts == EOS).any(1).sum().item())
print("without {}, bad_words_ids {}, suppress_tokens {}".format(*ended))
assert ended[2] == 0 < ended[0], "behaviour changed: suppress_tokens no longer forbids EOS"
assert ended[1] == ended[0], "behaviour changed: EOS can be a bad word"
PYTHON
