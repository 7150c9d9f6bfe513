"""Rewards: classifiers as reward functions, and the check of what any reward function returns.

A reward function is any callable `(prompts, completions, **columns) -> list[float]`, TRL's signature. The rated text
is prompt + completion, joined without a separator: a completion carries its own leading space.
"""

import math
from collections.abc import Callable, Iterable
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BatchEncoding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rarlhf_nb.errors import UserError, first_line
from rarlhf_nb.hub import resolve_model

Reward = Callable[..., list[float]]


class ClassifierReward:
    """The raw logit of one class of a sequence classifier, times a sign.

    The model is put into evaluation mode and rates in its own precision. The score of a text depends neither on the
    other texts of the call nor on `batch_size`.

    Args:
        model: a sequence classifier; it stays on its device.
        tokenizer: the classifier's tokenizer, which is set to pad on the right and truncate on the left.
        label: the id of the class whose logit is the reward.
        accepted_label_names: the names that the model may give that class, case-insensitive; None accepts any name.
        sign: +1 if the class is wanted, -1 if it is not (toxicity).
        batch_size: texts per forward pass.

    Raises:
        UserError: an unknown class, or a name that is not accepted.
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
        self.model = model.eval()
        self.tokenizer = prepared_tokenizer(tokenizer, model)
        self.label, self.sign, self.batch_size = label, sign, batch_size
        self.__name__ = f"{model.config.id2label[label]}_logit"  # TRL logs a reward function under this name

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """The reward of each episode; other columns of the data set are ignored."""
        return self.score([prompt + completion for prompt, completion in zip(prompts, completions, strict=True)])

    def score(self, texts: list[str]) -> list[float]:
        """The reward of whole texts, such as prompts alone."""
        return self.rate(texts)[0]

    def rate(self, texts: list[str]) -> tuple[list[float], list[float]]:
        """Each text's reward and its probability in [0, 1]: that of the class or, with sign -1, of its absence.

        The probability is the classifier's own: a sigmoid if several classes may hold at once (`problem_type`
        multi_label_classification) or there is only one class, otherwise a softmax.
        """
        logits = class_logits(self.model, self.tokenizer, texts, self.batch_size)
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
    """Load a `ClassifierReward` from a folder or a hub id, in fp32, from safetensors, without remote code.

    Raises:
        UserError: the errors of `resolve_model` and `ClassifierReward`, and a model that is not a trained classifier.
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
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"reward.model = {str(model)!r} does not load as a sequence classifier: {first_line(error)}"
        ) from error
    if loading["missing_keys"]:  # a language model would load with a random head
        raise UserError(
            f"reward.model = {str(model)!r} has no trained classification head (missing: "
            f"{', '.join(sorted(loading['missing_keys']))}): name a text classifier"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return ClassifierReward(classifier.to(device), tokenizer, label, accepted_label_names, sign, batch_size)


def check_rewards(rewards: Any, prompts: list[str], completions: list[str], missing: bool = False) -> list[float]:
    """Check what a reward function returned; gives one finite float per episode.

    Lists, tensors and arrays are accepted. If rewards may be `missing`, None and NaN become NaN.

    Raises:
        UserError: a wrong number of values, or a value that is not a finite number; the message shows its episode.
    """
    expected = f"return one number for each of the {len(prompts)} episodes"
    values = rewards.tolist() if isinstance(rewards, torch.Tensor | np.ndarray) else rewards
    if not isinstance(values, Iterable):
        raise UserError(f"the reward function returned {type(rewards).__name__}: {expected}")
    values = list(values)
    if len(values) != len(prompts):
        raise UserError(f"the reward function returned {len(values)} values: {expected}")
    for index, (value, prompt, completion) in enumerate(zip(values, prompts, completions, strict=True)):
        if not (_is_finite_number(value) or (missing and (value is None or value != value))):
            raise UserError(
                f"the reward of episode {index} is {value!r}, not a finite number: return a finite number for it. "
                f"Prompt: {prompt[:80]!r}. Completion: {completion[:80]!r}"
            )
    return [math.nan if value is None else float(value) for value in values]


@torch.no_grad()
def class_logits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], batch_size: int
) -> torch.Tensor:
    """The model's logits, in the order of `texts`: (N, classes), fp32, on the CPU."""
    model.eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # similar lengths need little padding
    logits = torch.empty(len(texts), model.config.num_labels)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = encoded(tokenizer, [texts[i] for i in rows]).to(model.device)
        logits[rows] = model(**batch).logits.float().cpu()
    return logits


def prepared_tokenizer(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """The tokenizer, set to pad on the right and to truncate on the left to the length that the model can read.

    A text that is too long loses its beginning, since the completion, which is rated, is at its end.
    """
    tokenizer.padding_side, tokenizer.truncation_side = "right", "left"
    positions = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:  # causal models need it to find the last token of a text
        model.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def encoded(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> BatchEncoding:
    """Token ids and attention mask: (N, T)."""
    return tokenizer(texts, padding=True, truncation=True, return_token_type_ids=False, return_tensors="pt")


def _check_label(model: PreTrainedModel, label: int, accepted_names: list[str] | None) -> None:
    names = model.config.id2label
    if label not in names:
        raise UserError(f"reward.label = {label!r} is not a class of the model; choose one of {names}")
    accepted = {name.lower() for name in [*(accepted_names or []), f"LABEL_{label}"]}
    if accepted_names is not None and names[label].lower() not in accepted:
        raise UserError(
            f"reward.label = {label} is called {names[label]!r} by the model, not one of {accepted_names}; its classes "
            f"are {names}: choose the right id, or add the name to reward.accepted_label_names"
        )


def _is_finite_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor | np.ndarray) and value.shape == ():
        value = value.item()  # a list of zero-dimensional tensors counts as a list of numbers
    return isinstance(value, Real) and math.isfinite(value)
