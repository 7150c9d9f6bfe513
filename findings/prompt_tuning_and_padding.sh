#!/usr/bin/env bash
# Surprise: with prompt tuning, a text that is padded on the left is read otherwise than alone, on Llama as well.
# Guess: padding changes nothing where the mask and rotary positions make it harmless, as on the same model without PEFT.
# Versions: peft 0.21.2, transformers 5.23.0, torch 2.13.0
# Behaviour: the virtual tokens go before the padding, so that padding lies between them and the text. Position ids are
#   dropped by PEFT. Each prompt of a batch then has its soft prompt at another distance, when sampling too. Prefix tuning is
#   right if position ids are passed.
# Seen (largest change of a logit of the last token): no adapter 0.00, prompt tuning 0.88, prefix tuning 0.00
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

python_with torch==2.13.0 transformers==5.23.0 peft==0.21.2 <<'PYTHON'
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
text = torch.tensor([[9, 33, 5, 60, 21, 14]])
padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), text], 1)
mask = (torch.arange(10) >= 4).long()[None]
places = (mask.cumsum(1) - 1).clamp(min=0)
changes = []
for kind in (None, PromptTuningConfig, PrefixTuningConfig):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, initializer_range=0.2)).eval()
    if kind:
        model = get_peft_model(model, kind(task_type="CAUSAL_LM", num_virtual_tokens=4)).eval()
    with torch.no_grad():
        alone = model(input_ids=text, attention_mask=torch.ones_like(text)).logits[:, -1]
        beside = model(input_ids=padded, attention_mask=mask, position_ids=places).logits[:, -1]
    changes.append((alone - beside).abs().max().item())
print("no adapter {:.2f}, prompt tuning {:.2f}, prefix tuning {:.2f}".format(*changes))
assert changes[0] < 1e-4 and changes[2] < 1e-4, "behaviour changed: padding is not harmless"
assert changes[1] > 0.1, "behaviour changed: prompt tuning reads a padded text as it does alone"
PYTHON
