"""Rewards: classifiers as reward functions, and the check of what any reward function returns.

A reward function is any callable `(prompts, completions, **columns) -> list[float]`, TRL's signature, or an async one.
The rated text is prompt + completion, joined without a separator: a completion carries its own leading space. If a
prompt is a conversation, a reward function gets the completion as TRL hands it over, as a list of one message of the
assistant. A classifier then reads both through its tokenizer's chat template. Without one, it reads the contents of the
turns as lines, but not the system's, which is an instruction.
"""

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BatchEncoding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerState,
)

from rarlhf_nb.conversations import Prompt, contents, is_conversation, templated, transcript
from rarlhf_nb.errors import UserError, first_line
from rarlhf_nb.hub import resolve_model
from rarlhf_nb.rollout import Rollout

Reward = Callable[..., list[float]]
# what a reward function is given besides the columns of the data set, all by TRL's names
ARGUMENTS = {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"}


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
        UserError: an unknown class, a name that is not accepted, or a model whose scores depend on the batch.
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
        self._check_batches()

    def __call__(self, prompts: list[Prompt], completions: list[Prompt], **columns: Any) -> list[float]:
        """The reward of each episode; other columns of the data set are ignored."""
        return self.score([prompt + completion for prompt, completion in zip(prompts, completions, strict=True)])

    def _check_batches(self) -> None:
        """Raise `UserError` if padding changes a score: some models, such as XLNet, want it on the left."""
        if self.batch_size == 1:
            return
        texts, half = ["a text", "a text that is clearly longer than the other"], self.model.dtype != torch.float32
        alone, batch = (class_logits(self.model, self.tokenizer, texts, size) for size in (1, 2))
        if not torch.allclose(alone, batch, *((0.1, 0.1) if half else (1e-3, 1e-3))):
            raise UserError(
                f"reward.batch_size = {self.batch_size}: {type(self.model).__name__} gives a text another score beside "
                "a longer one, where it is padded on the right; set reward.batch_size to 1."
            )

    def score(self, texts: list[Prompt]) -> list[float]:
        """The reward of whole texts or conversations, such as prompts alone."""
        return self.rate(texts)[0]

    def rate(self, texts: list[Prompt]) -> tuple[list[float], list[float]]:
        """Each text's reward and its probability in [0, 1]: that of the class or, with sign -1, of its absence.

        The probability is the classifier's own: a sigmoid if several classes may hold at once (`problem_type`
        multi_label_classification) or there is only one class, otherwise a softmax.
        """
        chats = self.tokenizer.chat_template is not None and any(map(is_conversation, texts))
        texts = [templated(text, self.tokenizer, answer=False) if chats else contents(text) for text in texts]
        logits = class_logits(self.model, self.tokenizer, texts, self.batch_size, special_tokens=not chats)
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


def episode_rewards(
    reward_funcs: Sequence[Reward],
    episodes: Rollout,
    columns: dict[str, list] | None = None,
    state: TrainerState | None = None,
    missing: bool = False,
) -> torch.Tensor:
    """The sum of the reward functions for each episode, checked: (B,) float64.

    A function that gives None for an episode does not count for it, as in TRL; NaN if all rewards of an episode are
    `missing`, which must be allowed. columns: of the data set. state: TRL's `trainer_state`; outside of a training, its
    end. Async functions are run side by side.

    Raises the errors of `check_rewards`.
    """
    texts = {"prompts": episodes.prompts, "completions": completions_for_rewards(episodes)}
    ids = [row[real].tolist() for row, real in zip(episodes.completion_ids, episodes.completion_mask, strict=True)]
    ignore = {"log_extra": lambda *_: None, "log_metric": lambda *_: None}  # our log has columns of its own
    arguments = texts | {"completion_ids": ids, "trainer_state": state or TrainerState(global_step=1, max_steps=1)}
    arguments |= ignore | (columns or {})
    given = _awaited([reward(**_accepted(reward, arguments)) for reward in reward_funcs])
    rewards = [check_rewards(each, **texts, missing=missing, none=len(given) > 1) for each in given]
    rewards = torch.tensor(rewards, dtype=torch.float64)
    total = rewards.nansum(0).masked_fill(rewards.isnan().all(0), math.nan)
    return total if missing else torch.tensor(check_rewards(total, **texts), dtype=torch.float64)


def completions_for_rewards(episodes: Rollout) -> list[Prompt]:
    """The completions in the form of their prompts: texts, or lists of one message of the assistant."""
    pairs = zip(episodes.prompts, episodes.completions, strict=True)
    return [[{"role": "assistant", "content": text}] if is_conversation(prompt) else text for prompt, text in pairs]


def _accepted(reward: Reward, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments that a function takes; all of them if it takes any."""
    parameters = inspect.signature(reward).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return arguments
    names = {parameter.name for parameter in parameters}
    return {name: argument for name, argument in arguments.items() if name in names}


def _awaited(values: list[Any]) -> list[Any]:
    """The values, those of async functions once they are there."""

    async def value_of(value: Any) -> Any:
        return await value if isinstance(value, Awaitable) else value

    async def all_values() -> list[Any]:
        return await asyncio.gather(*map(value_of, values))

    if not any(isinstance(value, Awaitable) for value in values):
        return values
    with ThreadPoolExecutor(1) as other_thread:  # a notebook's own thread runs an event loop already
        return other_thread.submit(asyncio.run, all_values()).result()


def check_rewards(
    rewards: Any, prompts: list[Prompt], completions: list[Prompt], missing: bool = False, none: bool = False
) -> list[float]:
    """Check what a reward function returned; gives one finite float per episode.

    Lists, tensors and arrays are accepted. If rewards may be `missing`, None and NaN become NaN; or only None if they
    may be `none`.

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
        no_number = (missing or none) if value is None else (missing and value != value)
        if not (no_number or _is_finite_number(value)):
            raise UserError(
                f"the reward of episode {index} is {value!r}, not a finite number: return a finite number for it. "
                f"Prompt: {transcript(prompt)[:80]!r}. Completion: {transcript(completion)[:80]!r}"
            )
    return [math.nan if value is None else float(value) for value in values]


@torch.no_grad()
def class_logits(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    batch_size: int,
    special_tokens: bool = True,
) -> torch.Tensor:
    """The model's logits, in the order of `texts`: (N, classes), fp32, on the CPU.

    special_tokens: whether the tokenizer adds its own to the texts.
    """
    model.eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # similar lengths need little padding
    logits = torch.empty(len(texts), model.config.num_labels)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = encoded(tokenizer, [texts[i] for i in rows], pad_id(model), special_tokens).to(model.device)
        logits[rows] = model(**batch).logits.float().cpu()
    return logits


def prepared_tokenizer(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """The tokenizer, set to truncate on the left to the length that the model can read; the model gets a pad token.

    A text that is too long loses its beginning, since the completion, which is rated, is at its end. Raises `UserError`
    if neither the model's config nor the tokenizer names a token to pad with.
    """
    tokenizer.padding_side, tokenizer.truncation_side = "right", "left"
    tokenizer.model_max_length = min(tokenizer.model_max_length, _positions(model) or tokenizer.model_max_length)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    config = model.config.get_text_config()
    if config.pad_token_id not in range(config.vocab_size):
        at_the_end = tokenizer("")["input_ids"]  # a text that ended in the pad token would be read without its end
        found = [i for i in (tokenizer.pad_token_id, *tokenizer.all_special_ids) if i not in (None, *at_the_end)]
        if not (found := [i for i in found if i < config.vocab_size]):
            raise UserError(
                f"reward.model: neither the config of {type(model).__name__} nor its tokenizer names a token to pad "
                "with; set `pad_token_id` in its config.json to a token that ends no text."
            )
        config.pad_token_id = found[0]
    return tokenizer


def _positions(model: PreTrainedModel) -> int | None:
    """The most tokens that the model can read; None if there is no limit."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is None or positions < 0:  # XLNet says -1
        return None
    # RoBERTa and its kin count from padding_idx + 1, in a table that is no longer for it
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    before = [table.padding_idx for table in tables if getattr(table, "padding_idx", None) is not None]
    return positions - max((index + 1 for index in before), default=0)


def pad_id(model: PreTrainedModel) -> int:
    """The token that texts must be padded with.

    A causal classifier reads its answer at the last token that is not the pad token of its config, whatever the
    attention mask says and whatever the tokenizer's pad token is (transformers 5.23).
    """
    return model.config.get_text_config().pad_token_id


def encoded(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], pad_id: int, special_tokens: bool = True
) -> BatchEncoding:
    """Token ids and attention mask (N, T), padded on the right. A text without tokens is read as one pad token."""
    rows = tokenizer(texts, truncation=True, add_special_tokens=special_tokens)["input_ids"]
    ids = [torch.tensor(row or [pad_id]) for row in rows]
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    ids = pad_sequence(ids, batch_first=True, padding_value=pad_id)
    return BatchEncoding({"input_ids": ids, "attention_mask": mask})


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
