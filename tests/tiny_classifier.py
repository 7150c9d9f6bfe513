"""A classifier of a few thousand parameters and its tokenizer, for tests that need a real network."""

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import DistilBertConfig, DistilBertForSequenceClassification, PreTrainedTokenizerFast

WORDS = ["good", "bad", "film", "the", "was", "very", "a", "and"]
TEXTS = ["the film", "the film was very very good", "bad", "a good film and a bad film and a good film", "good"]
LENGTH = 16  # most tokens


def word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token per word."""
    ids = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", *words])}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]")


def classifier_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of WORDS, after [CLS], from which DistilBERT reads its answer."""
    tokenizer = word_tokenizer(WORDS)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    return tokenizer


def distilbert(labels: dict[int, str] | None = None) -> DistilBertForSequenceClassification:
    torch.manual_seed(0)
    size = {
        "vocab_size": 11,
        "max_position_embeddings": LENGTH,
        "dim": 16,
        "hidden_dim": 32,
        "n_layers": 2,
        "n_heads": 2,
    }
    config = DistilBertConfig(**size, pad_token_id=0, id2label=labels or {0: "NEGATIVE", 1: "POSITIVE"})
    config.initializer_range = 0.5  # the scores of random weights then differ clearly
    return DistilBertForSequenceClassification(config)
