"""A classifier of a few thousand parameters and its tokenizer, for tests that need a real network."""

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import DistilBertConfig, DistilBertForSequenceClassification, PreTrainedTokenizerFast

WORDS = ["good", "bad", "film", "the", "was", "very", "a", "and"]
TEXTS = [
    "the film",
    "the film was very very good",
    "bad",
    "a good film and a bad film and a good film",
    "good",
]
LENGTH = 16  # most tokens


def classifier_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", *WORDS])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = WhitespaceSplit()
    words.post_processor = TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]")


def distilbert(labels: dict[int, str] | None = None) -> DistilBertForSequenceClassification:
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=11,
        max_position_embeddings=LENGTH,
        dim=16,
        hidden_dim=32,
        n_layers=2,
        n_heads=2,
        pad_token_id=0,
    )
    config.id2label = labels or {0: "NEGATIVE", 1: "POSITIVE"}
    config.initializer_range = 0.5  # the scores of random weights then differ clearly
    return DistilBertForSequenceClassification(config)
