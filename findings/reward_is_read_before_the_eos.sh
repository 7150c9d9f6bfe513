#!/usr/bin/env bash
# Surprise: TRL's reward trainer adds an EOS to every text, and the model then gives the score of the token before it.
# Guess: the score is read at the EOS, the one token that has seen the whole text and its end.
# Versions: trl 1.16.0, transformers 5.23.0, torch 2.13.0
# Behaviour: where the tokenizer pads with its EOS (TRL does so if it has no pad token), the EOS is skipped as padding.
#   A reward model thus cannot tell "finished" from "cut off". With a pad token of its own it can.
# Seen:
#   pads with <pad>: ids [4, 5, 2], scores per position [-0.019 0.074 0.069], given 0.069
#   pads with </s>:  ids [4, 5, 2], scores per position [-0.019 0.074 0.069], given 0.074
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

python_with torch==2.13.0 transformers==5.23.0 trl==1.16.0 <<'PYTHON'
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast
from trl import RewardConfig, RewardTrainer

words = Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2, "?": 3, "a": 4, "b": 5}, unk_token="?"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
sizes = dict(vocab_size=6, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_labels=1)
read_at = []
for pad in ("<pad>", None):
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token=pad, eos_token="</s>", unk_token="?")
    trainer = RewardTrainer(
        model=LlamaForSequenceClassification(LlamaConfig(**sizes)),
        processing_class=tokenizer,
        args=RewardConfig("out", use_cpu=True, bf16=False, report_to="none"),
        train_dataset=Dataset.from_dict({"chosen": ["a b"], "rejected": ["b"]}),
    )
    ids, model = trainer.train_dataset[0]["chosen_ids"], trainer.model.eval()
    with torch.no_grad():
        each = model.score(model.model(torch.tensor([ids])).last_hidden_state)[0, :, 0]
        given = model(torch.tensor([ids])).logits[0, 0]
    read_at.append((each - given).abs().argmin().item())
    print(f"pads with {tokenizer.pad_token}: ids {ids}, scores per position {each.numpy().round(3)}, given {given:.3f}")
assert read_at == [2, 1], f"behaviour changed: the score is read at {read_at}"
PYTHON
