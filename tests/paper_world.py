"""Small copies of the models and data sets that the paper's profiles name, on disk and in the hub's formats."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tiny_classifier import word_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    PreTrainedTokenizerFast,
)

WORDS = ["the", "film", "was", "good", "bad", "plot", "very", "editor", "page", "comment", "idiot", "thanks", "please"]
WORDS += ["ending", "slow", "warm", "horrible", "kind"]
TOXIC_NAMES = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]  # unitary/toxic-bert's


def texts(count: int, words: int, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, words)).capitalize() + "." for _ in range(count)]


# Models


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer like GPT-2's: byte-level BPE, <|endoftext|> as every special token, no pad token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    learned = {"vocab_size": 320, "initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "show_progress": False}
    trainer = trainers.BpeTrainer(special_tokens=["<|endoftext|>"], **learned)
    tokenizer.train_from_iterator(texts(200, 12, seed=0), trainer)
    special = dict.fromkeys(["bos_token", "eos_token", "unk_token"], "<|endoftext|>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=256, **special)


def write_models(folder: Path) -> dict[str, str]:
    """Hub id -> local folder of each model that the paper's profiles name."""
    words, pieces = byte_level_tokenizer(), word_tokenizer(WORDS)
    ends = {"bos_token_id": words.eos_token_id, "eos_token_id": words.eos_token_id}
    encoder = {"vocab_size": len(pieces), "max_position_embeddings": 512, "pad_token_id": pieces.pad_token_id}
    size = {"dim": 16, "hidden_dim": 32, "n_layers": 1, "n_heads": 2}
    distilbert = DistilBertConfig(**encoder, **size, id2label={0: "neg", 1: "pos"}, label2id={"neg": 0, "pos": 1})
    names = {"id2label": dict(enumerate(TOXIC_NAMES)), "label2id": {name: i for i, name in enumerate(TOXIC_NAMES)}}
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = BertConfig(**encoder, **size, **names, problem_type="multi_label_classification")
    gpt2 = GPT2Config(vocab_size=len(words), n_positions=256, n_embd=16, n_layer=1, n_head=2, **ends)
    # GPT-J's embedding has more rows than its tokenizer has tokens
    gptj = GPTJConfig(vocab_size=len(words) + 7, n_positions=256, n_embd=16, n_layer=1, n_head=2, rotary_dim=4, **ends)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = {
            "gpt2": (GPT2LMHeadModel(gpt2), words),
            "EleutherAI/gpt-j-6b": (GPTJForCausalLM(gptj), words),
            "lvwerra/distilbert-imdb": (DistilBertForSequenceClassification(distilbert), pieces),
            "unitary/toxic-bert": (BertForSequenceClassification(bert), pieces),
        }
    folders = {}
    for name, (model, tokenizer) in made.items():
        folders[name] = str(folder / name)
        model.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


# Data sets


def write_imdb(folder: Path, count: int = 80) -> Path:
    """Like `stanfordnlp/imdb`: one Parquet file per split, named in the README; half of the texts positive, sorted."""
    (folder / "plain_text").mkdir(parents=True)
    files = "configs:\n- config_name: plain_text\n  default: true\n  data_files:\n"
    for seed, split in enumerate(("train", "test", "unsupervised")):
        label = [-1] * count if split == "unsupervised" else [0] * (count // 2) + [1] * (count // 2)
        table = pd.DataFrame({"text": texts(count, 60, seed), "label": label})
        table.to_parquet(folder / "plain_text" / f"{split}-00000-of-00001.parquet", index=False)
        files += f"  - split: {split}\n    path: plain_text/{split}-*\n"
    (folder / "README.md").write_text(f"---\n{files}---\n")
    return folder


def kaggle_table(count: int, seed: int = 0, toxic_share: float = 0.25) -> pd.DataFrame:
    """A table with Kaggle's columns; by default, every fourth comment is toxic."""
    toxic = (np.arange(count) % round(1 / toxic_share) == 0).astype(int)
    table = pd.DataFrame({"id": [f"{i:016x}" for i in range(count)], "comment_text": texts(count, 20, seed)})
    return table.assign(**{name: toxic if name == "toxic" else 0 for name in TOXIC_NAMES})


def write_jigsaw(folder: Path, count: int = 120) -> Path:
    """Like `tcapelle/jigsaw-toxic-comment-classification-challenge`; the test split has rows that nobody scored."""
    (folder / "data").mkdir(parents=True)
    tables = {split: kaggle_table(count, seed) for seed, split in enumerate(("train", "test", "balanced_test"))}
    tables["test"].loc[:4, TOXIC_NAMES] = -1
    for split, table in tables.items():
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet", index=False)
    return folder


def prompts_rows(count: int, seed: int = 0) -> list[dict]:
    """Rows like those of RealToxicityPrompts: nested, every fourth prompt toxic, the last three without a score."""
    scores = ["profanity", "sexually_explicit", "identity_attack", "flirtation", "threat", "insult", "severe_toxicity"]
    rows = []
    for i, (prompt, continuation) in enumerate(zip(texts(count, 9, seed), texts(count, 9, seed + 1), strict=True)):
        toxicity = None if i >= count - 3 else (0.8 if i % 4 == 0 else 0.2)
        halves = {"prompt": (prompt, toxicity), "continuation": (" " + continuation, 0.1)}
        row = {"filename": f"{i:07d}.txt", "begin": 0, "end": 100, "challenging": i % 8 == 0}
        for half, (text, score) in halves.items():
            row[half] = {"text": text, "toxicity": score} | dict.fromkeys(scores, 0.1)
        rows.append(row)
    return rows


def write_prompts(folder: Path, count: int = 160) -> Path:
    """Like `allenai/real-toxicity-prompts`: one JSON Lines file, one split."""
    folder.mkdir(parents=True)
    lines = [json.dumps(row) for row in prompts_rows(count)]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def write_data_sets(folder: Path) -> dict[str, str]:
    """Hub id -> local folder of each data set that the paper's profiles name."""
    made = {
        "stanfordnlp/imdb": write_imdb,
        "tcapelle/jigsaw-toxic-comment-classification-challenge": write_jigsaw,
        "allenai/real-toxicity-prompts": write_prompts,
    }
    return {name: str(write(folder / name)) for name, write in made.items()}
