"""The settings of tasks, policies, rewards and trainers, typed and validated; a profile puts them together."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from rarlhf_nb.risk import SoftRiskSchedule

Share = Field(gt=0, le=1)


class Section(BaseModel):
    """A part of a profile; it refuses unknown keys and cannot be changed after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def numbers_are_not_truth_values(cls, value: Any, field: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[field.field_name].annotation is not bool:
            raise ValueError(f"this setting is not a switch, so it cannot be {str(value).lower()}; give its value")
        return value


class TaskSettings(Section):
    """The texts, and the prompts: the first `prompt_length` tokens of each text, or short conversations."""

    name: Literal["imdb-gen", "jigsaw-gen", "rtp-gen"]
    source: Literal["pocket-imdb", "pocket-jigsaw", "pocket-rtp", "files", "imdb", "jigsaw", "rtp"]
    train_file: str | None = None  # JSONL, CSV or Parquet with `text` or `messages`, and an optional `label`
    test_file: str | None = None
    dataset: str | None = None  # for imdb, jigsaw and rtp: a hub id, or a local folder or file in its format
    dataset_revision: str | None = None  # for a hub id
    prompt_length: int = Field(gt=0)  # tokens
    shorter_prompts: bool = False  # whether a text of fewer tokens is a prompt as well
    train_prompts: int = Field(gt=0)  # at most this many are used
    test_prompts: int = Field(gt=0)
    minimum_characters: int = Field(ge=0)  # shorter texts give no prompt
    positive_label: int = 1  # SFT and perplexity use the texts with this label
    train_toxic_share: float | None = Field(gt=0, lt=1, default=None)  # of the prompts; None: as in the data
    test_toxic_share: float | None = Field(gt=0, lt=1, default=None)
    toxicity_threshold: float = Field(ge=0, lt=1, default=0.5)  # rtp: prompts with a higher score are toxic
    continuations: bool = False  # rtp: SFT and perplexity use prompt and continuation, not the prompt alone
    test_share: float = Field(gt=0, lt=1, default=0.2)  # of each class, if the data set has no test split
    split_seed: int = Field(ge=0, default=42)  # for that split
    tail_threshold: float  # tail prompts: prompt_score <= this

    @model_validator(mode="after")
    def data_are_given(self) -> "TaskSettings":
        for field in ("train_file", "test_file"):
            path = getattr(self, field)
            if self.source == "files" and path is None:
                raise ValueError(
                    f"task.{field} is missing: name a JSONL, CSV or Parquet file with a `text` column, "
                    f"for example -p task.{field} reviews.jsonl"
                )
        if self.source in ("imdb", "jigsaw", "rtp") and not self.dataset:
            raise ValueError(
                f"task.dataset is missing: task.source = {self.source!r} takes a hub id, or a local folder or file in "
                "that data set's format"
            )
        return self


class LoraSettings(Section):
    """A peft LoRA adapter on the policy; the reference is then the same network with the adapter switched off."""

    r: int = Field(gt=0)
    alpha: int = Field(gt=0)
    dropout: float = Field(ge=0, lt=1, default=0.0)


class PolicySettings(Section):
    """The causal LM: `pocket`, `smollm2`, a folder, or a hub id."""

    model: str
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights; adapter and value head are always float32
    lora: LoraSettings | None = None
    quantization: Literal["8bit", "4bit"] | None = None  # of the weights beneath the adapter; needs bitsandbytes
    gradient_checkpointing: bool = False  # activations are computed again in the backward pass: less memory, more time
    mixed_precision: Literal["no", "bf16"] = "no"

    @model_validator(mode="after")
    def only_frozen_weights_are_quantized(self) -> "PolicySettings":
        if self.quantization and self.lora is None:
            raise ValueError(
                f"policy.quantization = {self.quantization!r} needs policy.lora, since such weights cannot be trained; "
                'give for example -p policy.lora "{r: 16, alpha: 32}", or set policy.quantization to null'
            )
        return self


class RewardSettings(Section):
    """The classifier whose raw logit of class `label`, times `sign`, is the reward of prompt + completion."""

    model: str  # `pocket`, `train` (on the labelled training texts), a folder, or a hub id
    label: int = 1
    accepted_label_names: list[str] = []
    sign: Literal[1, -1] = 1
    batch_size: int = Field(gt=0, default=128)


class SamplingSettings(Section):
    """How completions are drawn, in training and evaluation alike; without top-k and top-p."""

    completion_length: int = Field(gt=0)  # at most this many new tokens
    minimum_completion_length: int = Field(ge=0)  # EOS is forbidden before this many
    temperature: float = Field(gt=0, default=1.0)

    @model_validator(mode="after")
    def minimum_fits(self) -> "SamplingSettings":
        if self.minimum_completion_length > self.completion_length:
            raise ValueError(
                f"sampling.minimum_completion_length = {self.minimum_completion_length} is above "
                f"sampling.completion_length = {self.completion_length}; lower it"
            )
        return self


class SFTSettings(Section):
    """Supervised fine-tuning on the positive or non-toxic texts: the start and the reference of every RL method."""

    learning_rate: float = Field(gt=0)
    batch_size: int = Field(gt=0)
    epochs: float = Field(gt=0)
    max_length: int = Field(gt=1)  # tokens
    texts: int | None = Field(gt=0, default=None)  # at most this many; None: all
    gradient_accumulation_steps: int = Field(gt=0, default=1)  # batches per optimizer step
    packing: bool = False  # texts are concatenated and cut into blocks of max_length
    max_steps: int | None = Field(gt=0, default=None)  # optimizer steps; None: as many as the epochs need


class QuarkSettings(Section):
    """Quantised reward conditioning: before the prompt, the policy reads the quantile of the reward."""

    quantiles: int = Field(gt=1, default=5)  # K
    kl_coef: float = Field(ge=0, default=0.05)  # beta
    entropy_coef: float = Field(ge=0, default=0.06)  # lambda, from the authors' code
    learning_rate: float = Field(gt=0, default=1e-5)
    batch_size: int = Field(gt=0, default=128)
    steps: int = Field(gt=0)  # gradient steps in all
    sample_interval: int = Field(gt=0)  # gradient steps between two explorations
    warmup_steps: int = Field(ge=0, default=0)
    exploration_prompts: int | None = Field(gt=0, default=None)  # per exploration; None: every training prompt
    max_grad_norm: float | None = Field(gt=0, default=None)
    adam_epsilon: float = Field(gt=0, default=1e-5)


class PPOSettings(Section):
    """The PPO of Algorithm 1."""

    iterations: int = Field(gt=0)  # M
    batch_size: int = Field(gt=1)  # B, episodes per iteration
    micro_batch_size: int | Literal["auto"] | None = None  # episodes per pass; None and auto: as many as memory holds
    epochs: int = Field(gt=0)  # PPO epochs, one optimizer step each
    learning_rate: float = Field(gt=0)
    gamma: float = Field(ge=0, le=1, default=1.0)
    lam: float = Field(ge=0, le=1, default=0.95)  # GAE lambda
    cliprange: float = Field(gt=0, default=0.2)
    cliprange_value: float = Field(gt=0, default=0.2)
    vf_coef: float = Field(ge=0, default=0.1)
    kl_coef: float = Field(ge=0)  # beta_0
    kl_target: float | None = Field(gt=0, default=None)  # nats per episode; None: beta is fixed
    kl_horizon: int = Field(gt=0, default=10_000)  # episodes; K_beta = B / horizon
    ratio_threshold: float = Field(gt=1, default=10.0)  # of the mean ratio; watch.ratio says what happens beyond it
    max_grad_norm: float | None = Field(gt=0, default=None)

    @field_validator("micro_batch_size", mode="before")
    @classmethod
    def micro_batch_size_is_a_count(cls, size: Any) -> Any:
        if not (size is None or size == "auto" or (isinstance(size, int) and size > 0)):
            raise ValueError("give a number of episodes above 0, or auto or null (as many as memory holds)")
        return size


class RiskSettings(Section):
    """The tail to train on; alpha = 1 is RLHF."""

    alpha: float = Share  # tail share
    warm_start: int = Field(ge=0)  # n, the first iterations, which keep every episode
    rho: float = Share  # share of the iterations at which alpha is reached
    estimator: Literal["tail_selection", "rockafellar_uryasev"] = "tail_selection"
    above_share: float = Field(gt=0, le=1, default=1.0)  # of the episodes above VaR in a Rockafellar-Uryasev update
    whitening: Literal["kept", "batch"] = "kept"  # episodes over which tail selection whitens; kept: the paper

    def schedule(self, ppo: PPOSettings) -> SoftRiskSchedule:
        """The soft-risk schedule over PPO's iterations."""
        return SoftRiskSchedule(ppo.batch_size, self.alpha, ppo.iterations, self.warm_start, self.rho)


Action = Literal["warn", "skip", "stop"]  # skip: no further optimizer step in the iteration


class CriticFreeSettings(Section):
    """GRPO and RLOO of TRL, alone and on the tail (see `baselines.critic_free`).

    Epochs, clipping and max_grad_norm are those of `ppo`; alpha and the schedule are those of `risk`, whose
    warm-up is the same share of these iterations.
    """

    methods: list[Literal["grpo", "cvar_grpo", "rloo", "cvar_rloo"]] = []  # that notebook 04 trains
    iterations: int = Field(gt=0)
    batch_size: int = Field(gt=1, default=128)  # episodes per iteration
    samples_per_prompt: int = Field(gt=1, default=8)  # TRL's default for GRPO; must divide batch_size
    learning_rate: float = Field(gt=0)  # constant
    kl_coef: float = Field(ge=0)  # beta, in GRPO's loss (per token) or RLOO's reward (per episode); 0: no reference
    estimator: Literal["tail_selection", "rockafellar_uryasev", "cvar_gradient"] = "rockafellar_uryasev"
    tail: Literal["batch", "prompt"] = "batch"

    @model_validator(mode="after")
    def prompts_are_whole(self) -> "CriticFreeSettings":
        if self.batch_size % self.samples_per_prompt:
            raise ValueError(
                f"critic_free.samples_per_prompt = {self.samples_per_prompt} does not divide critic_free.batch_size = "
                f"{self.batch_size}; change one of them"
            )
        return self


class WatchSettings(Section):
    """What is done when a training goes wrong, symptom by symptom (see `monitor`).

    By default only the numbers of a broken training stop it. In sound runs the KL stayed below 14 nats, and the value
    loss below twice its usual value.
    """

    not_finite: Literal["skip", "stop"] = "stop"  # NaN or infinity in a loss or gradient; it never reaches the weights
    kl: Action = "stop"
    kl_bound: float = Field(gt=0, default=50.0)  # mean nats per completion
    negative_kl: Action = "warn"  # clearly below 0, which an estimate of a KL cannot be
    ratio: Action = "skip"  # mean ratio above ppo.ratio_threshold
    value_loss: Action = "stop"
    value_loss_bound: float = Field(gt=1, default=30.0)  # times its usual value, see `monitor`
    equal_rewards: Action = "warn"  # all rewards of a batch
    no_variance: Action = "warn"  # in the advantages of the kept episodes
    collapse: Action = "warn"
    collapse_bound: float = Field(gt=0, le=1, default=0.5)  # share of a batch that is one completion


class ConditionedSettings(Section):
    """One policy for every tail share from alpha_min to 1, which reads alpha (see `conditioned`)."""

    alpha_min: float = Field(gt=0, lt=1, default=0.1)
    groups: int = Field(gt=1, default=4)  # of a batch, each with its own alpha
    iterations: int | None = Field(gt=0, default=None)  # None: twice those of ppo, as it stands for several trainings
    kl_coef: float | None = Field(ge=0, default=None)  # None: that of ppo

    def training(self, ppo: PPOSettings) -> PPOSettings:
        """The settings of PPO, with the iterations and kl_coef of this training."""
        kl_coef = ppo.kl_coef if self.kl_coef is None else self.kl_coef
        return ppo.model_copy(update={"iterations": self.iterations or 2 * ppo.iterations, "kl_coef": kl_coef})


def flat(nested: Any, prefix: str = "") -> dict[str, Any]:
    """A nested dictionary with dotted keys."""
    if not isinstance(nested, dict):
        return {prefix: nested}
    return {k: v for key, value in nested.items() for k, v in flat(value, f"{prefix}.{key}".strip(".")).items()}
