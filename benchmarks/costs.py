"""What an iteration costs, on paper: FLOPs, bytes, memory and network, from a model's config and a batch's shape.

FLOPs are the multiplications and additions of matrix products, as torch's `FlopCounterMode` counts them; norms,
activations, softmax, sampling and the value head are left out. Attention is counted on the full square of positions,
although a causal kernel may leave out half of it.

Symbols: B episodes, P prompt tokens, T completion tokens, S = P + T; W weights in the matrices of the blocks, L blocks,
H hidden units, V tokens in the vocabulary, A heads of D units, G key-value heads; N processes, one to a GPU.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from rarlhf_nb.errors import UserError

if TYPE_CHECKING:  # the arithmetic needs neither torch nor transformers
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Architecture:
    """The sizes of a transformer that its costs depend on."""

    layers: int  # L
    attention_width: int  # A D, of all heads together
    key_value_width: int  # G D, of all key-value heads together
    hidden_size: int  # H
    vocabulary: int  # V
    parameters: int  # all of them, a tied matrix once
    matrix_weights: int  # W, in the linear layers of all blocks
    matrix_sides: int  # inputs + outputs, summed over the linear layers of all blocks

    @property
    def head_weights(self) -> int:
        """H V, the weights of the LM head."""
        return self.hidden_size * self.vocabulary


def causal_lm(config: "PreTrainedConfig") -> Architecture:
    """The sizes of the causal LM of a transformers config, counted on a model without memory (device `meta`).

    For dense models only: W would count all experts of a mixture, of which a token reads a few.
    """
    from transformers import AutoModelForCausalLM

    return _architecture(config, AutoModelForCausalLM.from_config)


def encoder(config: "PreTrainedConfig") -> Architecture:
    """The sizes of a classifier's network without its last layers, which read one token of each text."""
    from transformers import AutoModel

    return _architecture(config, AutoModel.from_config)


def _architecture(config: "PreTrainedConfig", build: Callable[["PreTrainedConfig"], "PreTrainedModel"]) -> Architecture:
    import torch
    from transformers.pytorch_utils import Conv1D

    with torch.device("meta"):
        model = build(config)
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    matrices = [
        module.weight.shape
        for module in model.modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not model.get_output_embeddings()
    ]
    return Architecture(
        layers=config.num_hidden_layers,
        attention_width=heads * head_size,
        key_value_width=(getattr(config, "num_key_value_heads", None) or heads) * head_size,
        hidden_size=config.hidden_size,
        vocabulary=config.vocab_size,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        matrix_weights=sum(shape.numel() for shape in matrices),
        matrix_sides=sum(sum(shape) for shape in matrices),
    )


@dataclass(frozen=True)
class Shape:
    """The batch of an iteration, and how it is worked through. Raises `UserError` where `kept` is not in 1 ... B."""

    batch_size: int  # B
    prompt_length: int  # P
    completion_length: int  # T
    kept: int | None = None  # episodes in the update; None: all
    epochs: int = 4
    lora_rank: int | None = None  # of an adapter on every linear layer but the LM head; None: all weights are trained
    gradient_checkpointing: bool = False  # the blocks' activations are computed anew in the backward pass
    micro_batch_size: int | None = None  # episodes per pass and process; None: all at once
    weight_bytes: int = 4  # of a weight and an activation: 4 for float32, 2 for bfloat16

    def __post_init__(self) -> None:
        if not 1 <= self.updated <= self.batch_size:
            raise UserError(
                f"kept = {self.kept}: an update uses between 1 and batch_size = {self.batch_size} episodes."
            )

    @property
    def length(self) -> int:
        """S = P + T."""
        return self.prompt_length + self.completion_length

    @property
    def read(self) -> int:
        """S - 1, the tokens that the policy reads of an episode: nothing follows the last one."""
        return self.length - 1

    @property
    def updated(self) -> int:
        """The number of episodes in the update."""
        return self.batch_size if self.kept is None else self.kept


@dataclass(frozen=True)
class Costs:
    """One number for each phase of an iteration."""

    generate: float
    score: float
    update: float

    @property
    def total(self) -> float:
        """The sum of the phases."""
        return self.generate + self.score + self.update


def iteration_flops(config: "PreTrainedConfig", shape: Shape, reward_config: "PreTrainedConfig | None" = None) -> Costs:
    """The FLOPs of one iteration on all processes together; the reward model counts where its config is given."""
    policy = causal_lm(config)
    score = score_flops(policy, shape)
    if reward_config is not None:
        score += shape.batch_size * blocks_flops(encoder(reward_config), shape.length, shape.length**2)
    return Costs(generate_flops(policy, shape), score, update_flops(policy, shape))


def blocks_flops(model: Architecture, tokens: int, pairs: int) -> float:
    """A forward pass through the blocks: 2 W tokens + 4 L A D pairs, of `pairs` (query, key) in the attention."""
    return 2 * model.matrix_weights * tokens + 4 * model.layers * model.attention_width * pairs


def head_flops(model: Architecture, tokens: int) -> float:
    """A forward pass through the LM head: 2 H V tokens."""
    return 2 * model.head_weights * tokens


def adapter_flops(model: Architecture, shape: Shape, tokens: int) -> float:
    """A forward pass through the LoRA adapter of rank r: 2 r (inputs + outputs) tokens; 0 without an adapter."""
    return 2 * (shape.lora_rank or 0) * model.matrix_sides * tokens


def generate_flops(model: Architecture, shape: Shape) -> float:
    """The prompts at once (P tokens, P^2 pairs), then T - 1 tokens with a cache, which see P + 1 ... P + T - 1 keys.

    The last token is sampled and not read. The LM head reads one position of the prompt and each token after it.
    """
    tokens = shape.read
    pairs = shape.prompt_length**2 + decoding_pairs(shape)
    blocks = blocks_flops(model, tokens, pairs) + adapter_flops(model, shape, tokens)
    return shape.batch_size * (blocks + head_flops(model, shape.completion_length))


def decoding_pairs(shape: Shape) -> int:
    """The keys that the decoded tokens of an episode see: sum of P + t over t = 1 ... T - 1."""
    return sum(range(shape.prompt_length + 1, shape.length))


def forward_flops(model: Architecture, shape: Shape) -> float:
    """One episode scored: S - 1 tokens, (S - 1)^2 pairs, the LM head on the last T; without the adapter."""
    return blocks_flops(model, shape.read, shape.read**2) + head_flops(model, shape.completion_length)


def scoring_passes(shape: Shape) -> int:
    """Forward passes over the batch: 1, of the reference, since the sampler keeps the policy's numbers.

    In half precision the policy reads the episodes again: 2 (see `CVaRPPOTrainer.behaviour`).
    """
    return 1 if shape.weight_bytes == 4 else 2


def score_flops(model: Architecture, shape: Shape) -> float:
    """B episodes through the reference and, in half precision, through the policy with its adapter."""
    passes = scoring_passes(shape)
    adapter = (passes - 1) * adapter_flops(model, shape, shape.read)
    return shape.batch_size * (passes * forward_flops(model, shape) + adapter)


def update_flops(model: Architecture, shape: Shape) -> float:
    """Epochs x kept episodes x (forward + backward).

    A backward pass takes the gradient of each product's two factors: twice the forward pass. The gradient of a frozen
    weight is left out, saving one pass of the matrices under an adapter. Gradient checkpointing adds a forward
    pass through the blocks.
    """
    blocks, adapter = blocks_flops(model, shape.read, shape.read**2), adapter_flops(model, shape, shape.read)
    passes = 3 * (forward_flops(model, shape) + adapter)
    if shape.lora_rank is not None:
        frozen = 2 * model.matrix_weights * shape.read + head_flops(model, shape.completion_length)
        passes -= frozen
    if shape.gradient_checkpointing:
        passes += blocks + adapter
    return shape.epochs * shape.updated * passes


LOGIT_COPIES = 2  # as computed, and in float32, which its gradient overwrites
GATHERED_BLOCKS = 2  # under FSDP: the block at work, and the next on its way
ADAPTER_BYTES = 4  # adapters are float32
Strategy = Literal["data parallel", "ZeRO-2", "FSDP"]


def adapter_weights(model: Architecture, shape: Shape) -> int:
    """The weights of the LoRA adapter: r (inputs + outputs), summed over the linear layers."""
    return (shape.lora_rank or 0) * model.matrix_sides


def trained_bytes(model: Architecture, shape: Shape) -> float:
    """The bytes of all trained weights: the adapter's with LoRA, else the model's."""
    if shape.lora_rank is not None:
        return ADAPTER_BYTES * adapter_weights(model, shape)
    return shape.weight_bytes * model.parameters


def cache_bytes(model: Architecture, shape: Shape) -> float:
    """The key-value cache: 2 L G D x (S - 1) tokens x B x bytes; the last token is not read."""
    return 2 * model.layers * model.key_value_width * shape.read * shape.batch_size * shape.weight_bytes


def activation_bytes(model: Architecture, shape: Shape, episodes: int) -> float:
    """What a forward pass keeps for the backward pass: episodes x (S - 1) x (inputs + outputs of all linear layers).

    The outputs stand for the inputs of attention, activation and norms; attention and activation are fused kernels
    that keep no matrix of scores. For a GPT block this is 16 H a token, as in Korthikanti et al. 2022 without dropout.
    With gradient checkpointing it is L H a token and one block's activations.
    """
    elements = model.matrix_sides
    if shape.gradient_checkpointing:
        elements = model.layers * model.hidden_size + model.matrix_sides / model.layers
    return elements * shape.read * episodes * shape.weight_bytes


def logit_bytes(model: Architecture, shape: Shape, episodes: int) -> float:
    """The copies of the logits while a loss is computed: copies x T V x episodes x 4 bytes."""
    return 4 * LOGIT_COPIES * shape.completion_length * model.vocabulary * episodes


def passes(shape: Shape, episodes: int) -> int:
    """The number of micro-batches in `episodes`."""
    return math.ceil(episodes / (shape.micro_batch_size or episodes))


def iteration_bytes(model: Architecture, shape: Shape) -> Costs:
    """Bytes that one process reads and writes in its memory, for its own share of the batch.

    Generation reads all weights once per token, and the cache at every decoded one. Scoring and update read the
    weights once per pass and micro-batch (update: forward, backward, and forward again with gradient checkpointing),
    and write and read activations and logits. Adam reads weight, gradient and two moments, and writes three of them.
    """
    weights = shape.weight_bytes * (model.matrix_weights + model.head_weights)
    token = 2 * model.layers * model.key_value_width * shape.weight_bytes
    generate = weights * shape.completion_length + token * shape.batch_size * decoding_pairs(shape)
    whole = activation_bytes(model, replace(shape, gradient_checkpointing=False), 1) + logit_bytes(model, shape, 1)
    score = scoring_passes(shape) * (passes(shape, shape.batch_size) * weights + 2 * shape.batch_size * whole)
    forwards = 3 if shape.gradient_checkpointing else 2
    epoch = forwards * passes(shape, shape.updated) * weights + forwards * shape.updated * whole
    return Costs(generate, score, shape.epochs * (epoch + 7 * trained_bytes(model, shape)))


@dataclass(frozen=True)
class Memory:
    """The bytes that one process holds at the peak of an iteration."""

    weights: float  # policy and reference
    gradients: float
    moments: float  # of Adam
    cache: float  # of keys and values, while it generates
    scoring: float  # the logits of a micro-batch of the whole batch
    activations: float  # of a micro-batch of the kept episodes, while it updates, like its logits
    logits: float

    @property
    def peak(self) -> float:
        """Weights, gradients and moments, and the largest of cache, scoring, and activations with logits."""
        held = self.weights + self.gradients + self.moments
        return held + max(self.cache, self.scoring, self.activations + self.logits)


def memory(model: Architecture, shape: Shape, strategy: Strategy = "data parallel", processes: int = 1) -> Memory:
    """The memory of one of N processes, for its own share of the batch.

    Weights: 2 x parameters x bytes for policy and reference, or 1 x with LoRA, whose reference is the policy without
    its adapter; / N under FSDP, with two whole blocks. Gradients: the trained weights' bytes; moments: twice that;
    both / N under ZeRO-2 and FSDP.
    """
    networks = 1 if shape.lora_rank is not None else 2
    weights = networks * model.parameters * shape.weight_bytes + ADAPTER_BYTES * adapter_weights(model, shape)
    if strategy == "FSDP" and processes > 1:
        weights = weights / processes + GATHERED_BLOCKS * model.matrix_weights / model.layers * shape.weight_bytes
    trained = trained_bytes(model, shape) / (1 if strategy == "data parallel" else processes)
    limit = min(shape.micro_batch_size or shape.batch_size, shape.batch_size)
    micro_batch = min(limit, shape.updated)
    return Memory(
        weights=weights,
        gradients=trained,
        moments=2 * trained,
        cache=cache_bytes(model, shape),
        scoring=logit_bytes(model, shape, limit),
        activations=activation_bytes(model, shape, micro_batch),
        logits=logit_bytes(model, shape, micro_batch),
    )


def network_bytes(model: Architecture, shape: Shape, strategy: Strategy, processes: int) -> Costs:
    """Bytes that one of N processes sends, in rings: each collective sends (N - 1) / N of what it works on.

    Data parallel: the gradients, reduced and gathered: 2 x trained weights in an epoch. ZeRO-2: as much, gradients
    reduced and new weights gathered. FSDP: all weights for each forward and each backward pass of every micro-batch,
    also for each generated token, and the gradients reduced per micro-batch.
    """
    sent = (processes - 1) / processes
    trained = trained_bytes(model, shape)
    if strategy != "FSDP":
        return Costs(0, 0, shape.epochs * 2 * trained * sent)
    weights = model.parameters * shape.weight_bytes
    update = shape.epochs * passes(shape, shape.updated) * (2 * weights + trained)
    score = scoring_passes(shape) * passes(shape, shape.batch_size) * weights
    return Costs(shape.completion_length * weights * sent, score * sent, update * sent)
