#!/usr/bin/env bash
# Surprise: the score of a padded text depends on WHICH id pads it, although the attention mask says what is padding.
# Guess: a classifier takes the last token that the mask marks as real.
# Versions: transformers 5.23.0, torch 2.13.0
# Behaviour: a causal classifier never asks the mask where the text ends. It takes the last token that is not
#   `config.pad_token_id`. A tokenizer that pads with another id (after a change of its pad token, for example) gets the
#   score of a padding position, and the score then changes with the length of the other texts of the batch.
# Seen: alone -0.0297, padded with the config's id -0.0297, padded with another id 0.0015
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

python_with torch==2.13.0 transformers==5.23.0 <<'PYTHON'
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

torch.manual_seed(0)
sizes = dict(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
model = LlamaForSequenceClassification(LlamaConfig(**sizes, num_labels=1, pad_token_id=0)).eval()


def score(ids, mask):
    with torch.no_grad():
        return model(torch.tensor([ids]), attention_mask=torch.tensor([mask])).logits.item()


alone = score([5, 6, 7], [1, 1, 1])
config_pad, other_pad = (score([5, 6, 7, pad, pad], [1, 1, 1, 0, 0]) for pad in (0, 49))
print(f"alone {alone:.4f}, padded with the config's id {config_pad:.4f}, padded with another id {other_pad:.4f}")
assert abs(config_pad - alone) < 1e-6, "behaviour changed: the config's own pad id is no longer skipped"
assert abs(other_pad - alone) > 1e-3, "behaviour changed: the mask now tells where a text ends"
PYTHON
