#!/usr/bin/env bash
# Surprise: training resumed with another learning rate and weight decay goes on with the old ones, after a step at rate 0.
# Guess: what is passed to the new Trainer holds; the checkpoint brings moments and the step.
# Versions: transformers 5.23.0, torch 2.13.0, accelerate 1.15.0
# Behaviour: optimizer and scheduler states bring the settings of the first run along, and nothing warns. The schedule's
#   last rate, 0 at the end of a finished run, is used once more; then the old rate decays over the new number of steps.
# Seen: asked for 1e-05 and decay 0.5; steps 5 to 8 ran at ['0', '0.000375', '0.00025', '0.000125'] and decay 0.0
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

python_with torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 <<'PYTHON'
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

sizes = dict(vocab_size=16, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
rows = [{"input_ids": torch.tensor([4, 5, 6]), "labels": torch.tensor([4, 5, 6])}] * 32


def trainer(steps, rate, decay):
    own = dict(max_steps=steps, learning_rate=rate, weight_decay=decay)
    how = dict(per_device_train_batch_size=2, use_cpu=True, report_to="none", save_steps=4, logging_steps=1)
    model = LlamaForCausalLM(LlamaConfig(**sizes))
    return Trainer(model, TrainingArguments("out", disable_tqdm=True, **own, **how), train_dataset=rows)


trainer(4, 1e-3, 0.0).train()
resumed = trainer(8, 1e-5, 0.5)
resumed.train(resume_from_checkpoint="out/checkpoint-4")
rates = [row["learning_rate"] for row in resumed.state.log_history if "learning_rate" in row][4:]
decay = max(group["weight_decay"] for group in resumed.optimizer.param_groups)
print(f"asked for 1e-05 and decay 0.5; steps 5 to 8 ran at {[f'{rate:.3g}' for rate in rates]} and decay {decay}")
assert rates[0] == 0 and max(rates) > 1e-4 and decay == 0, "behaviour changed: the new settings hold"
PYTHON
