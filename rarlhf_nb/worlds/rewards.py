"""What a completion is worth: classifier rewards, the check on everyone's rewards, and training a classifier.

A reward is any callable `(prompts, completions, **columns) -> list[float]`, TRL's signature. The text that is
rated is prompt + completion, joined as they are: a completion carries its own leading space.
"""

import contextlib
import json
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BatchEncoding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from rarlhf_nb.core.errors import UserError
from rarlhf_nb.worlds.hub import resolve_model

Reward = Callable[..., list[float]]
LabelledText = tuple[str, int]  # a text and the id of its class
LABEL_NAMES = {0: "negative", 1: "positive"}


class ClassifierReward:
    """The raw logit of one class of a sequence classifier, times a sign.

    The model is put into evaluation mode and rates in its own precision; scores depend neither on the other
    texts of a call nor on `batch_size`.

    Args:
        model: a sequence classifier; it stays on its device.
        tokenizer: the classifier's own. It is set to pad on the right and to truncate on the left.
        label: the class id whose logit is the reward.
        accepted_label_names: what the model may call that class, in any case; None accepts every name.
        sign: +1 where the class is wanted, -1 where it is not (toxicity).
        batch_size: texts a forward pass.

    Raises:
        UserError: no such class, a name that is not accepted, or a sign other than +1 and -1.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        label: int,
        accepted_label_names: list[str] | None = None,
        sign: Literal[1, -1] = 1,
        batch_size: int = 32,
    ) -> None:
        _check_label(model, label, accepted_label_names)
        if sign not in (1, -1):
            raise UserError(f"reward.sign = {sign!r}: give 1 to be paid for label {label}, -1 to be paid against it")
        self.model = model.eval()
        self.tokenizer = _prepared(tokenizer, model)
        self.label, self.sign, self.batch_size = label, sign, batch_size
        self.__name__ = f"{model.config.id2label[label]}_logit"  # TRL logs a reward function under its name

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """The reward of each episode; other columns of the data set are not looked at."""
        return self.score([prompt + completion for prompt, completion in zip(prompts, completions, strict=True)])

    def score(self, texts: list[str]) -> list[float]:
        """The reward of whole texts, such as prompts alone."""
        return self.rate(texts)[0]

    def rate(self, texts: list[str]) -> tuple[list[float], list[float]]:
        """Each text's reward, and the same as a probability in [0, 1]: of the class, or with sign -1 of its absence.

        The probability is the classifier's own: a sigmoid where several classes may hold at once
        (`problem_type` multi_label_classification) or there is only one, a softmax otherwise.
        """
        logits = _logits(self.model, self.tokenizer, texts, self.batch_size)
        alone = logits.shape[1] == 1 or self.model.config.problem_type == "multi_label_classification"
        probability = (logits.sigmoid() if alone else logits.softmax(1))[:, self.label]
        probability = probability if self.sign == 1 else 1 - probability
        return (self.sign * logits[:, self.label]).tolist(), probability.tolist()


def load_reward(
    model: str | Path,
    label: int,
    accepted_label_names: list[str] | None = None,
    sign: Literal[1, -1] = 1,
    batch_size: int = 32,
) -> ClassifierReward:
    """A `ClassifierReward` from a folder or a hub id: fp32, safetensors only, no remote code.

    Raises:
        UserError: as `resolve_model` and `ClassifierReward`; also a model that is not a trained classifier.
    """
    folder = resolve_model(str(model))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        classifier, loading = AutoModelForSequenceClassification.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"reward.model = {str(model)!r} does not load as a sequence classifier: {reason}") from error
    if loading["missing_keys"]:  # a language model loads too, with a head of random numbers
        raise UserError(
            f"reward.model = {str(model)!r} has no trained classification head (missing: "
            f"{', '.join(sorted(loading['missing_keys']))}): name a text classifier"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return ClassifierReward(classifier.to(device), tokenizer, label, accepted_label_names, sign, batch_size)


def check_rewards(rewards: Any, prompts: list[str], completions: list[str]) -> list[float]:
    """What a reward function returned, as one finite float an episode.

    Lists, tensors and arrays are all welcome.

    Raises:
        UserError: a wrong count, or a value that is not a finite number; the message shows its episode.
    """
    expected = f"return one number for each of the {len(prompts)} episodes"
    values = rewards.tolist() if isinstance(rewards, torch.Tensor | np.ndarray) else rewards
    if not isinstance(values, Iterable):
        raise UserError(f"the reward function returned {type(rewards).__name__}: {expected}")
    values = list(values)
    if len(values) != len(prompts):
        raise UserError(f"the reward function returned {len(values)} values: {expected}")
    for index, (value, prompt, completion) in enumerate(zip(values, prompts, completions, strict=True)):
        if not _is_finite_number(value):
            raise UserError(
                f"the reward of episode {index} is {value!r}, not a finite number: return one for it, too. "
                f"Prompt: {_shortened(prompt)!r}. Completion: {_shortened(completion)!r}"
            )
    return [float(value) for value in values]


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
) -> dict[str, Any]:
    """Trains a two-class model on labelled texts and writes it, its tokenizer and `metrics.json`.

    Args:
        model: a sequence classifier with two classes, trained in place.
        train, held_out: (text, label) pairs, labels 0 and 1; nothing is chosen on the held-out pairs.
        head_learning_rate: of what lies on top of the base model, where that is new and the rest is not.
        windows: train on random windows of so many tokens (fewest, most) in place of whole texts, so that a
            short text is rated as surely as a long one.
        lengths: report the accuracy on the first n tokens of the held-out texts for each n; on whole texts if
            there is none.
        label_names: what the labels mean; written into the model's config.
        seed: of the order, the windows and the dropout; the global random state is left as it was.

    Returns:
        What `metrics.json` holds: `accuracy` by length (each of `lengths`, or "whole"), `train_texts`,
        `held_out_texts`, `seconds`.
    """
    start = time.perf_counter()
    model.config.id2label = dict(label_names)
    model.config.label2id = {name: label for label, name in label_names.items()}
    tokenizer = _prepared(tokenizer, model)
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        per_device_train_batch_size=batch_size,
        num_train_epochs=epochs,
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=0.05,  # a share of all steps
        weight_decay=0.01,
        seed=seed,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),  # warns where there is nothing to pin for
        remove_unused_columns=False,
    )
    with _random_state_kept():
        collator = _Collator(tokenizer, windows, seed)
        trainer = _ClassifierTrainer(model, arguments, train_dataset=list(train), data_collator=collator)
        trainer.mixed_precision = mixed_precision
        trainer.head_learning_rate = head_learning_rate or learning_rate
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    with _autocast(model.device, mixed_precision):
        accuracy = _accuracies(model, tokenizer, held_out, lengths, batch_size)
    metrics = {
        "accuracy": accuracy,
        "train_texts": len(train),
        "held_out_texts": len(held_out),
        "seconds": round(time.perf_counter() - start, 1),
    }
    (Path(output_dir) / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics


class _ClassifierTrainer(Trainer):
    """The hub's Trainer, with two learning rates and autocast of our own (its is for the whole process)."""

    mixed_precision: str
    head_learning_rate: float

    def autocast_smart_context_manager(self, *args: Any, **kwargs: Any) -> contextlib.AbstractContextManager:
        return _autocast(self.args.device, self.mixed_precision)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        body = list(self.model.base_model.parameters())
        head = list(self.model.parameters())[len(body) :]  # what a classifier adds comes last
        groups = [
            {"params": [parameter for parameter in body if parameter.requires_grad]},
            {"params": head, "lr": self.head_learning_rate},
        ]
        self.optimizer = torch.optim.AdamW(groups, self.args.learning_rate, weight_decay=self.args.weight_decay)
        return self.optimizer


def _autocast(device: torch.device, mixed_precision: str) -> contextlib.AbstractContextManager:
    return torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision == "bf16")


class _Collator:
    """Labelled texts to a padded batch; one random window length a batch, so that little is padding."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, windows: tuple[int, int] | None, seed: int) -> None:
        self.tokenizer, self.windows, self.random = tokenizer, windows, random.Random(seed)

    def __call__(self, pairs: list[LabelledText]) -> dict[str, torch.Tensor]:
        texts = [text for text, _ in pairs]
        if self.windows:
            length = self.random.randint(*self.windows)
            texts = [self._window(text, length) for text in texts]
        batch = _encoded(self.tokenizer, texts)
        return {**batch, "labels": torch.tensor([label for _, label in pairs])}

    def _window(self, text: str, length: int) -> str:
        """`length` tokens of a text: half the time its first, as in a prompt, else from anywhere in it."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        spare = max(0, len(ids) - length)
        first = self.random.randint(0, spare) if self.random.random() < 0.5 else 0
        return self.tokenizer.decode(ids[first : first + length])


def _accuracies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Sequence[LabelledText],
    lengths: Sequence[int],
    batch_size: int,
) -> dict[str, float]:
    """Accuracy on the first n tokens of the held-out texts for each n, or on whole texts."""
    texts, labels = [text for text, _ in held_out], torch.tensor([label for _, label in held_out])
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    cut = {str(n): [tokenizer.decode(each[:n]) for each in ids] for n in lengths}
    accuracies = {}
    for length, each in (cut or {"whole": texts}).items():
        correct = _logits(model, tokenizer, each, batch_size).argmax(1) == labels
        accuracies[length] = round(correct.float().mean().item(), 4)
    return accuracies


@torch.no_grad()
def _logits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], batch_size: int
) -> torch.Tensor:
    """The model's logits in the order of `texts`: (N, classes), fp32, on the CPU."""
    model.eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # neighbours then need little padding
    logits = torch.empty(len(texts), model.config.num_labels)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = _encoded(tokenizer, [texts[i] for i in rows]).to(model.device)
        logits[rows] = model(**batch).logits.float().cpu()
    return logits


def _prepared(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """The tokenizer, padding on the right and truncating on the left to what the model can read.

    A text that is too long loses its beginning: the completion, which is being rated, stands at the end.
    """
    tokenizer.padding_side, tokenizer.truncation_side = "right", "left"
    positions = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:  # causal models find the last token of a text by it
        model.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def _encoded(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> BatchEncoding:
    """Token ids and attention mask: (N, T)."""
    return tokenizer(texts, padding=True, truncation=True, return_token_type_ids=False, return_tensors="pt")


def _check_label(model: PreTrainedModel, label: int, accepted_names: list[str] | None) -> None:
    names = model.config.id2label
    if label not in names:
        raise UserError(f"reward.label = {label!r} is not a class of the model; it has {names}")
    accepted = {name.lower() for name in [*(accepted_names or []), f"LABEL_{label}"]}
    if accepted_names is not None and names[label].lower() not in accepted:
        raise UserError(
            f"reward.label = {label} is called {names[label]!r} by the model, none of {accepted_names}; "
            f"it has {names}: choose the right id, or add the name to reward.accepted_label_names"
        )


def _is_finite_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor | np.ndarray) and value.shape == ():
        value = value.item()  # a list of zero-dimensional tensors is as good as a list of numbers
    return isinstance(value, Real) and math.isfinite(value)


def _shortened(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    """The global random states as they were, whatever is seeded inside: Trainer seeds all three."""
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
