"""Training a text classifier, such as a reward model, on labelled texts."""

import contextlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from rarlhf_nb.checkpoint import Checkpoints
from rarlhf_nb.distributed import autocast
from rarlhf_nb.resumable import QUIET, ResumableTrainer
from rarlhf_nb.rewards import class_logits, encoded, pad_id, prepared_tokenizer
from rarlhf_nb.seeding import library_seed

LabelledText = tuple[str, int]  # a text and the id of its class
WEIGHT_DECAY = 0.01
LABEL_NAMES = {0: "negative", 1: "positive"}


def train_classifier(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[LabelledText],
    held_out: Sequence[LabelledText],
    output_dir: str | Path,
    *,
    epochs: float = 1,
    learning_rate: float = 1e-3,
    head_learning_rate: float | None = None,
    batch_size: int = 32,
    windows: tuple[int, int] | None = None,
    lengths: Sequence[int] = (),
    label_names: Mapping[int, str] = LABEL_NAMES,
    mixed_precision: Literal["no", "bf16"] = "no",
    seed: int = 0,
    checkpoints: Checkpoints | None = None,
) -> dict[str, Any]:
    """Train a two-class model on labelled texts; writes the model, its tokenizer and `metrics.json`.

    Args:
        model: a sequence classifier with two classes, trained in place.
        train, held_out: (text, label) pairs with labels 0 and 1. The held-out pairs influence no choice.
        head_learning_rate: for the head on top of the base model, if it is new and the base is pretrained.
        windows: the fewest and the most tokens of the random windows to train on instead of whole texts, so that short
            texts are rated as reliably as long ones.
        lengths: report the accuracy on the first n tokens of the held-out texts for each n; if empty, on whole texts.
        label_names: the meaning of the labels, written into the model's config.
        seed: for the order, the windows and the dropout; the global random state is restored.
        checkpoints: where to save some on the way, and to go on from the last one; the result is the same, number for
            number, as without an interruption. Ctrl-C saves a checkpoint after the step under way.

    Returns:
        The content of `metrics.json`: `accuracy` by length (each of `lengths`, or "whole"), `train_texts`,
        `held_out_texts`.

    Raises:
        UserError: the checkpoints belong to a training with other settings.
    """
    model.config.id2label = dict(label_names)
    model.config.label2id = {name: label for label, name in label_names.items()}
    tokenizer = prepared_tokenizer(tokenizer, model)
    arguments = quiet_arguments(
        output_dir,
        per_device_train_batch_size=batch_size,
        num_train_epochs=epochs,
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=0.05,  # a share of all steps
        seed=library_seed(seed),
        remove_unused_columns=False,
    )
    determined_by = {
        "epochs": epochs,
        "learning_rate": learning_rate,
        "head_learning_rate": head_learning_rate,
        "batch_size": batch_size,
        "windows": list(windows or ()),
        "mixed_precision": mixed_precision,
        "seed": seed,
    }
    body = list(model.base_model.parameters())
    head = list(model.parameters())[len(body) :]  # the classifier's own parameters come last
    groups = [{"params": [each for each in body if each.requires_grad]}]
    groups += [{"params": head, "lr": head_learning_rate or learning_rate}]
    with _random_state_kept():
        trainer = _ClassifierTrainer(
            model,
            arguments,
            train_dataset=list(train),
            data_collator=partial(_padded_batch, tokenizer=tokenizer, pad_id=pad_id(model), windows=windows, seed=seed),
            optimizers=(torch.optim.AdamW(groups, learning_rate, weight_decay=WEIGHT_DECAY), None),
        )
        trainer.mixed_precision = mixed_precision
        trainer.train_resumably(checkpoints, determined_by)
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    with autocast(model.device, mixed_precision):
        accuracy = _accuracies(model, tokenizer, held_out, lengths, batch_size)
    metrics = {"accuracy": accuracy, "train_texts": len(train), "held_out_texts": len(held_out)}
    (Path(output_dir) / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics


class _ClassifierTrainer(ResumableTrainer):
    """transformers' Trainer with its own autocast (Trainer's is set for the whole process)."""

    title = "Classifier"
    mixed_precision: str

    def autocast_smart_context_manager(self, *args: Any, **kwargs: Any) -> contextlib.AbstractContextManager:
        return autocast(self.args.device, self.mixed_precision)


def _padded_batch(
    pairs: list[LabelledText],
    tokenizer: PreTrainedTokenizerBase,
    pad_id: int,
    windows: tuple[int, int] | None,
    seed: int,
) -> dict[str, torch.Tensor]:
    """Token ids and mask (N, T), and labels (N,). The random windows have one length per batch to keep padding low.

    They are drawn from the seed and the batch alone, so that a resumed training sees the same ones.
    """
    texts = [text for text, _ in pairs]
    if windows:
        draw = random.Random(repr((seed, texts)))
        length = draw.randint(*windows)
        texts = [_window(text, length, tokenizer, draw) for text in texts]
    return {**encoded(tokenizer, texts, pad_id), "labels": torch.tensor([label for _, label in pairs])}


def _window(text: str, length: int, tokenizer: PreTrainedTokenizerBase, draw: random.Random) -> str:
    """`length` tokens of a text: half of the time its first ones, as in a prompt, otherwise from anywhere."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    first = draw.randint(0, max(0, len(ids) - length)) if draw.random() < 0.5 else 0
    return tokenizer.decode(ids[first : first + length])


def _accuracies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Sequence[LabelledText],
    lengths: Sequence[int],
    batch_size: int,
) -> dict[str, float]:
    """The accuracy on the first n tokens of the held-out texts for each n, or on whole texts."""
    texts, labels = [text for text, _ in held_out], torch.tensor([label for _, label in held_out])
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    cut = {str(n): [tokenizer.decode(each[:n]) for each in ids] for n in lengths}
    accuracies = {}
    for length, each in (cut or {"whole": texts}).items():
        correct = class_logits(model, tokenizer, each, batch_size).argmax(1) == labels
        accuracies[length] = round(correct.float().mean().item(), 4)
    return accuracies


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    """Restore the global random states after the block; transformers' Trainer seeds all three."""
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)


def quiet_arguments(output_dir: str | Path, **settings: Any) -> TrainingArguments:
    """Arguments for a transformers `Trainer` without checkpoints, logs and progress bars."""
    pin_memory = torch.cuda.is_available()  # without a GPU it warns
    settings |= QUIET | {"logging_strategy": "no", "dataloader_pin_memory": pin_memory}
    return TrainingArguments(output_dir=str(output_dir), **settings)
