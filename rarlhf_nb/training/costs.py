"""What an iteration costs, on paper: FLOPs, bytes, memory, network and seconds, from a model's config and a batch's shape.

Counted as multiplications and additions of matrix products (2 per multiply-add), as torch's `FlopCounterMode` counts
them; norms, activations, softmax, sampling and the value head are left out. Attention is counted on the full square of
positions, although a causal kernel may leave out half of it.

Symbols: B episodes, P prompt tokens, T completion tokens, S = P + T; W weights in the matrices of the blocks, L blocks,
H hidden units, V tokens in the vocabulary, A heads of D units, G key-value heads; N processes, one to a GPU.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

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
    """The sizes of the causal LM of a transformers config, counted on a model without memory (device `meta`)."""
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
    """The batch of an iteration, and how it is worked through."""

    batch_size: int  # B
    prompt_length: int  # P
    completion_length: int  # T
    kept: int | None = None  # episodes in the update; None: all
    epochs: int = 4
    lora_rank: int | None = None  # of an adapter on every linear layer but the LM head; None: all weights are trained
    gradient_checkpointing: bool = False  # the blocks' activations are computed anew in the backward pass
    micro_batch_size: int | None = None  # episodes per pass and process; None: all at once
    weight_bytes: int = 4  # of a weight and an activation: 4 for float32, 2 for bfloat16

    @property
    def length(self) -> int:
        """S = P + T."""
        return self.prompt_length + self.completion_length

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
    tokens = shape.length - 1
    pairs = shape.prompt_length**2 + decoding_pairs(shape)
    blocks = blocks_flops(model, tokens, pairs) + adapter_flops(model, shape, tokens)
    return shape.batch_size * (blocks + head_flops(model, shape.completion_length))


def decoding_pairs(shape: Shape) -> int:
    """The keys that the decoded tokens of an episode see: sum of P + t over t = 1 ... T - 1."""
    return sum(range(shape.prompt_length + 1, shape.length))


def forward_flops(model: Architecture, shape: Shape) -> float:
    """One episode scored: S tokens, S^2 pairs, the LM head on the last T + 1 positions; without the adapter."""
    return blocks_flops(model, shape.length, shape.length**2) + head_flops(model, shape.completion_length + 1)


def score_flops(model: Architecture, shape: Shape) -> float:
    """B episodes through policy and reference: B (2 forward passes + adapter)."""
    return shape.batch_size * (2 * forward_flops(model, shape) + adapter_flops(model, shape, shape.length))


def update_flops(model: Architecture, shape: Shape) -> float:
    """Epochs x kept episodes x (forward + backward).

    A backward pass takes the gradient of each product's two factors: twice the forward pass. The gradient of a frozen
    weight is left out: once the forward pass for the matrices under an adapter. Gradient checkpointing adds a forward
    pass through the blocks.
    """
    blocks, adapter = blocks_flops(model, shape.length, shape.length**2), adapter_flops(model, shape, shape.length)
    passes = 3 * (forward_flops(model, shape) + adapter)
    if shape.lora_rank is not None:
        frozen = 2 * model.matrix_weights * shape.length + head_flops(model, shape.completion_length + 1)
        passes -= frozen
    if shape.gradient_checkpointing:
        passes += blocks + adapter
    return shape.epochs * shape.updated * passes
