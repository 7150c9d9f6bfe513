"""The actor-critic: a causal LM with a value head; sampling, log-probabilities, and the frozen reference.

Shapes: B episodes, P prompt tokens (padded on the left), T completion tokens (padded on the right), V tokens in the
vocabulary, H hidden units. A mask is True on real tokens. The sampler forbids some tokens, and every log-probability
here is taken under the sampler's own masked and tempered distribution. Otherwise a policy could move probability to a
forbidden token and be rewarded for it with negative KL.
"""

import copy
import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any, Protocol

import peft
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Cache,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from rarlhf_nb.adapter import resolve_adapter, with_adapter, with_fresh_adapter
from rarlhf_nb.conversations import Prompt, is_conversation, templated
from rarlhf_nb.errors import UserError, first_line
from rarlhf_nb.quantization import Quantization, bitsandbytes_config, merged, prepare_quantized
from rarlhf_nb.risk_embedding import RiskEmbedding, load_conditioned
from rarlhf_nb.rollout import Rollout
from rarlhf_nb.sampling import Completions, SampledLogProbs, forbidden_tokens, roomy_cache, sampler_logits
from rarlhf_nb.seeding import seeded, uniforms
from rarlhf_nb.settings import LoraSettings, SamplingSettings

CHECKED: set[str] = set()  # configs that `check_architecture` has passed in this process
CLOSE, CLOSE_IN_HALF = 1e-4, 0.2  # total variation of two readings: rounding alone gives 2e-6 in float32, 0.03 in half
VALUE_HEAD = "value_head.safetensors"
PREFIX = "prefix.json"
PROBE = "a"  # any text: it shows what a tokenizer adds to every text
AS_WRITTEN = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}


class Policy(Protocol):
    """What evaluation needs of a method: completions with their likelihood, and the likelihood of human texts."""

    processing_class: PreTrainedTokenizerBase
    prefix_ids: list[int]

    @property
    def device(self) -> torch.device: ...

    def __call__(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, completion_length: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `ActorCritic.forward`."""

    def sample(self, prompts: list[Prompt], sampling: SamplingSettings, seed: int, first: int = 0) -> Rollout:
        """See `ActorCritic.sample`."""


class ActorCritic(nn.Module):
    """A causal LM (the actor) and a linear value head on its last hidden state (the critic): one trunk, two heads.

    The module stays in eval mode, since dropout would make the PPO ratio differ from 1 before any update. The
    checkpoint's own generation settings are replaced, since whoever generates with the model must draw from the
    distribution that `token_log_probs` describes.

    prefix_ids: tokens that the model reads before every prompt, such as an instruction or a reward token. They belong
    neither to the prompt nor to the completion of an episode. eos_ids: see `ending_tokens`. risk: the embedding of
    alpha of a conditioned policy, which acts for any tail share that it is told.
    """

    prefix_ids: list[int]
    eos_ids: list[int]
    risk: RiskEmbedding | None

    def __init__(self, model: PreTrainedModel, processing_class: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.model, self.processing_class = model, processing_class
        self.prefix_ids, self.risk = [], None
        # of what the output embedding reads, which OPT-350m projects to a smaller size
        hidden_size = model.get_output_embeddings().weight.shape[1]
        self.value_head = nn.Linear(hidden_size, 1, dtype=torch.float32, device=model.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        inner = base_model(model)
        if inner.base_model is inner and hasattr(inner, "model"):  # Llama 4's text model in transformers 5.23
            inner.base_model_prefix = "model"  # where TRL looks for the trunk
        self.eos_ids = ending_tokens(processing_class, inner.generation_config)
        inner.generation_config = GenerationConfig(
            bos_token_id=processing_class.bos_token_id,
            eos_token_id=self.eos_ids if len(self.eos_ids) > 1 else processing_class.eos_token_id,
            pad_token_id=processing_class.pad_token_id,
        )
        text_config = model.config.get_text_config()
        if getattr(text_config, "output_router_logits", False):
            text_config.output_router_logits = False  # for TRL's SFT; with a cache, transformers fails to rate them
        self._forbidden: tuple[Any, list[int]] = None, []
        self.takes_positions = takes(model, "position_ids")
        self.eval()

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def forbidden_ids(self) -> list[int]:
        """The tokens that are never sampled, since a completion is text: all special tokens except EOS.

        Those without a name count as well, such as Llama 3's reserved ones, which a decoder leaves out of the text.
        Some models, such as GPT-J, have more rows than their tokenizer has tokens, and some vocabularies have unused
        ids in between: such rows are never sampled either.
        """
        tokenizer = self.processing_class
        rows = self.model.get_output_embeddings().out_features  # FSDP flattens the weight
        known = tokenizer, len(tokenizer), rows
        if self._forbidden[0] != known:  # a large vocabulary is not searched in every pass
            special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
            text = {*tokenizer.get_vocab().values()} - special - {*tokenizer.all_special_ids} | {*self.eos_ids}
            self._forbidden = known, [i for i in range(rows) if i not in text]
        return self._forbidden[1]

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        completion_length: int,
        alpha: torch.Tensor | None = None,
        prefix_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, T, V) and values (B, T) at the positions that draw the last T = completion_length tokens.

        input_ids, attention_mask: (B, P + T). alpha: (B,) the tail share that a conditioned policy acts for; None adds
        no embedding. prefix_ids: a prefix (B, n) of each episode's own, instead of the policy's.
        """
        ids, mask = self.prefixed(input_ids, attention_mask, prefix_ids)
        return self.logits_and_values(ids[:, :-1], mask[:, :-1], completion_length, alpha)

    def logits_and_values(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        last: int,
        alpha: torch.Tensor | None = None,
        cache: Cache | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, last, V) and values (B, last) at the last of the tokens input_ids (B, L).

        attention_mask: (B, L), or longer by the tokens in the cache, which go before. alpha: see `forward`.
        """
        inputs, length = {"input_ids": input_ids}, input_ids.shape[1]
        if self.takes_positions:
            inputs["position_ids"] = positions(attention_mask)[:, -length:]
        with (
            nullcontext() if alpha is None else self.risk.read_by(self.model, alpha),
            last_hidden(self.model) as states,
        ):
            output = self.model(
                **inputs,
                attention_mask=attention_mask.long(),
                past_key_values=cache,
                use_cache=cache is not None,
                # as indices, since a number takes a view, whose logits are one slow product per episode
                logits_to_keep=torch.arange(length - last, length, device=input_ids.device),
            )
        # Gemma 3n keeps all logits
        logits, hidden = (each if each.shape[1] == last else each[:, -last:] for each in (output.logits, states[0]))
        return logits, self.value_head(hidden.to(self.value_head.weight.dtype)).squeeze(-1)

    def prefixed(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, prefix_ids: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask, both (B, n + L), with the prefix between a row's padding on the left and its prompt.

        Padding stands before everything: within a text it would take room in a sliding window, and enter the state of
        a recurrent layer or a convolution, which masks no token. A BOS of the prompt then stands before the prefix.
        """
        prefix = torch.tensor(self.prefix_ids, dtype=input_ids.dtype, device=input_ids.device)
        prefix = prefix.expand(len(input_ids), -1) if prefix_ids is None else prefix_ids
        if not prefix.shape[1]:
            return input_ids, attention_mask
        real = torch.ones_like(prefix, dtype=attention_mask.dtype)
        ids, mask = torch.cat([prefix, input_ids], 1), torch.cat([real, attention_mask], 1)
        count = attention_mask.cumsum(1)  # 0 on the padding on the left
        first = attention_mask.bool() & (count <= len(leading_ids(self.processing_class)))
        place = torch.where(first, 1, 3 * (count > 0).long())
        order = torch.cat([2 * real.long(), place], 1).argsort(dim=1, stable=True)
        return ids.gather(1, order), mask.gather(1, order)

    def token_log_probs(self, episodes: Rollout, sampling: SamplingSettings) -> torch.Tensor:
        """log pi(a_t | s_t) (B, T) under the sampler's masked distribution."""
        return evaluate_tokens(self, episodes, sampling).log_probs

    def tokenize(self, prompts: list[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and mask, both (B, P), padded on the left.

        A text begins as the tokenizer begins every text, but does not end in an EOS that the tokenizer appends. Of a
        conversation its chat template writes all tokens. Raises `UserError` for a token that the model has no embedding
        of, and the errors of `templated`.
        """
        tokenizer, options = self.processing_class, {"padding": True, "padding_side": "left", "return_tensors": "pt"}
        leading, chats = leading_ids(tokenizer), [is_conversation(prompt) for prompt in prompts]
        probe = leading + tokenizer(PROBE, add_special_tokens=False)["input_ids"]
        if not any(chats) and tokenizer(PROBE)["input_ids"] == probe:
            batch = tokenizer(prompts, **options)
        else:
            texts = [templated(prompt, tokenizer) for prompt in prompts]
            pairs = zip(chats, tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True)
            batch = tokenizer.pad({"input_ids": [ids if chat else leading + ids for chat, ids in pairs]}, **options)
        rows = self.model.get_input_embeddings().num_embeddings
        beyond = batch["input_ids"][batch["input_ids"] >= rows]
        if len(beyond):
            raise UserError(
                f"prompts hold {self.processing_class.decode(beyond[0])!r}, token {beyond[0]} of the tokenizer, but the"
                f" model has {rows} embeddings: take it out of the prompts, or call `resize_token_embeddings`."
            )
        return batch["input_ids"].to(self.device), batch["attention_mask"].bool().to(self.device)

    @torch.no_grad()
    def sample(
        self,
        prompts: list[Prompt],
        sampling: SamplingSettings,
        seed: int,
        first: int = 0,
        alpha: float | torch.Tensor | None = None,
    ) -> Rollout:
        """Draw one completion for each prompt, a text or a conversation.

        The same prompts, weights and seed give the same completions.
        first: the place of the first prompt in the batch that these prompts are a part of; an episode depends on its
        place, not on how the batch is cut. alpha: the tail share that a conditioned policy acts for, one for all
        prompts or (B,) one for each; one below those trained on gives a warning. Raises `UserError` if the longest
        prompt leaves no room for the completion, for an alpha outside (0, 1], if a conditioned policy gets none, and if
        another policy gets one.
        """
        alpha = self.episode_alphas(alpha, len(prompts))
        prompt_ids, prompt_mask = self.tokenize(prompts)
        ids, mask, cache = self.start(prompt_ids, prompt_mask, sampling.completion_length)
        numbers = uniforms(seed, first, len(prompts), sampling.completion_length)
        drawn = Completions(numbers, self.eos_ids, self.processing_class.pad_token_id, self.device)
        forbidden = self.forbidden_ids, self.eos_ids
        while drawn.growing:
            logits, values = self.logits_and_values(ids, mask, 1, alpha, cache)
            drawn.append(sampler_logits(logits, sampling, *forbidden, first=drawn.length), values)
            ids, mask = drawn.last, pad(mask, (0, 1), value=True)
        return self.rollout(prompts, prompt_ids, prompt_mask, drawn, alpha)

    def start(
        self, prompt_ids: torch.Tensor, prompt_mask: torch.Tensor, length: int
    ) -> tuple[torch.Tensor, torch.Tensor, Cache]:
        """Ids and mask of the prompts after the prefix, and a cache with room for them and `length` more tokens.

        Raises `UserError` if the model's context has no such room.
        """
        ids, mask = self.prefixed(prompt_ids, prompt_mask)
        check_context(self, ids.shape[1], length)
        return ids, mask, roomy_cache(self.model.config, ids.shape[1] + length)

    def episode_alphas(self, alpha: float | torch.Tensor | None, episodes: int) -> torch.Tensor | None:
        """The alpha of each episode (B,), None for a policy that reads none; raises the errors of `sample`."""
        if self.risk is not None:
            return self.risk.episode_alphas(alpha, episodes)
        if alpha is not None:
            raise UserError(f"alpha = {alpha}: this policy has no risk embedding and reads no alpha; leave it out.")
        return None

    def at(self, alpha: float) -> "ActorCritic":
        """This policy with alpha fixed: one that reads none, and whose model loads with transformers alone.

        Raises `UserError` for an alpha outside (0, 1] and for a policy without a risk embedding.
        """
        alphas = self.episode_alphas(alpha, 1)
        fixed = copy.deepcopy(self)
        fixed.model, fixed.risk = merged(fixed.model), None
        self.risk.add_to(fixed.model, alphas)
        return fixed

    def rollout(
        self,
        prompts: list[Prompt],
        prompt_ids: torch.Tensor,
        prompt_mask: torch.Tensor,
        drawn: Completions,
        alpha: torch.Tensor | None = None,
    ) -> Rollout:
        """The episodes of prompts with the completions that were drawn, also as text."""
        ids, mask, *numbers = drawn.tensors()
        texts = self.completion_texts(prompt_ids, prompt_mask, ids, mask)
        return Rollout(list(prompts), texts, prompt_ids, prompt_mask, ids, mask, *numbers, alpha=alpha)

    def completion_texts(
        self, prompt_ids: torch.Tensor, prompt_mask: torch.Tensor, completion_ids: torch.Tensor, mask: torch.Tensor
    ) -> list[str]:
        """The completions as text: the decoded episode after its prompt, so that leading spaces are kept."""
        decode, texts = partial(self.processing_class.decode, **AS_WRITTEN), []
        for prompt, is_prompt, completion, is_real in zip(prompt_ids, prompt_mask, completion_ids, mask, strict=True):
            prompt, completion = prompt[is_prompt], completion[is_real]
            head, whole = decode(prompt), decode(torch.cat([prompt, completion]))
            texts.append(whole[len(head) :] if whole.startswith(head) else decode(completion))
        return texts

    def save(self, folder: Path) -> None:
        """Write the policy in the hub's format, with its adapter merged in, and the value head and prefix beside it.

        Weights of bfloat16 stay so: merged ones are rounded at random, with a fixed seed, which keeps what was learnt
        but adds noise of the size of bfloat16's own rounding (see `rarlhf_nb.adapter`).

        Only `load_policy` reads the folder of a conditioned policy, which needs an alpha for every call; that of
        `at` loads everywhere.
        """
        merged(self.model).save_pretrained(folder)
        if self.risk is not None:
            self.risk.save(Path(folder))
        tokenizer = copy.deepcopy(self.processing_class)
        if tokenizer.is_fast:  # it would save how it was last called, which differs after a resumption
            tokenizer.backend_tokenizer.no_padding()
            tokenizer.backend_tokenizer.no_truncation()
        tokenizer.save_pretrained(folder)
        save_file(self.value_head.state_dict(), Path(folder) / VALUE_HEAD)
        (Path(folder) / PREFIX).write_text(json.dumps({"prefix_ids": self.prefix_ids}) + "\n")


def base_model(model: torch.nn.Module) -> PreTrainedModel:
    """The causal LM beneath an adapter, or the model itself if it has none."""
    return model.get_base_model() if isinstance(model, peft.PeftModel) else model


def takes(model: torch.nn.Module, argument: str) -> bool:
    """Whether the forward pass of a causal LM, beneath any adapter, takes an argument of this name."""
    return argument in inspect.signature(base_model(model).forward).parameters


def positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """The place (B, L) of every token in its text, whose padding on the left counts for nothing."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


@contextmanager
def last_hidden(model: PreTrainedModel) -> Iterator[list[torch.Tensor]]:
    """A block that catches what the output embedding reads, (B, L, H) or the part of it that logits are kept of.

    `output_hidden_states` would keep all layers, and gives something else for Gemma 3n, whose last has four dimensions.
    """
    states = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _layer, inputs: states.append(inputs[0]))
    try:
        yield states
    finally:
        hook.remove()


def ending_tokens(tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig | None) -> list[int]:
    """The tokens that end a completion: the tokenizer's EOS, and those that a checkpoint's generation config names.

    Chat models name several, of which the tokenizer knows one. A model that was made with the defaults of its config
    may name any word, so that only tokens that were added to the vocabulary count, as all special tokens are.
    """
    named = getattr(generation, "eos_token_id", None)
    named = [named] if isinstance(named, int) else named or []
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return own + [i for i in named if i in tokenizer.added_tokens_decoder and i not in own]


def leading_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that the tokenizer puts before every text by itself, such as BOS."""
    whole, text = tokenizer(PROBE)["input_ids"], tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    return next((whole[:at] for at in range(len(whole)) if whole[at : at + len(text)] == text), [])


def check_context(policy: ActorCritic, prompt_length: int, completion_length: int) -> None:
    """Raise `UserError` if prompt and completion together exceed the model's context."""
    config = policy.model.config.get_text_config()
    # the sparse attention of DeepSeek-V3.2 in transformers 5.23 chooses other tokens in a padded batch than in a text
    names = "max_position_embeddings", "index_topk"
    context = min((size for name in names if (size := getattr(config, name, None)) is not None), default=None)
    if context is not None and prompt_length + completion_length > context:
        raise UserError(
            f"task.prompt_length = {prompt_length} and sampling.completion_length = {completion_length} make "
            f"{prompt_length + completion_length} tokens, but the model's context holds {context}; shorten one of them."
        )


def use_gradient_checkpointing(model: PreTrainedModel) -> None:
    """Let a pass with gradients keep only the input of each block; the backward pass computes the rest again.

    transformers' own switch does nothing here, since it waits for training mode, in which the policy never is. A pass
    without gradients, such as the sampler's with its cache, is as before. Raises `UserError` for a model without blocks
    that transformers can checkpoint.
    """
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not blocks:
        raise UserError(f"policy.gradient_checkpointing: {type(model).__name__} does not support it; switch it off.")
    for block in blocks:
        block.forward = MethodType(_checkpointed_forward, block)


def _checkpointed_forward(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = MethodType(type(block).forward, block)
    if torch.is_grad_enabled():
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    return forward(*args, **kwargs)


def load_policy(
    model: str | Path,
    lora: LoraSettings | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    gradient_checkpointing: bool = False,
    quantization: Quantization | None = None,
) -> ActorCritic:
    """Load a policy from a folder or a hub id, onto the GPU if there is one.

    The folder of a LoRA adapter alone is loaded as the model that it names, with the adapter merged in. A value head, a
    prefix and a risk embedding that were saved with the policy are loaded as well. A tokenizer whose pad token is
    missing, or has no embedding, pads with EOS. Loads safetensors only and runs no remote code. With `lora`, the model
    gets a fresh adapter, initialised with `seed`. gradient_checkpointing: see `use_gradient_checkpointing`.
    quantization: of the weights beneath the adapter (see `quantization`). Raises `UserError` if the model cannot be
    found or loaded, fails `check_architecture`, or does not support the quantization or the gradient checkpointing
    asked for.
    """
    if quantization and lora is None:
        raise UserError(f"quantization = {quantization!r} needs an adapter: such weights cannot be trained; give lora.")
    (folder, adapted), device = resolve_adapter(str(model)), "cuda" if torch.cuda.is_available() else "cpu"
    if quantization and adapted:
        raise UserError(f"quantization = {quantization!r}: {str(model)!r} is an adapter; merge it first.")
    reduced = (
        {"quantization_config": bitsandbytes_config(quantization, dtype), "device_map": device} if quantization else {}
    )
    try:
        # not trusting remote code is no default: without this argument, transformers asks the user
        config, risk = load_conditioned(Path(folder))
        config = config or AutoConfig.from_pretrained(folder, trust_remote_code=False)
        for name in ("activation_function", "hidden_act"):
            if getattr(config, name, None) == "gelu_new":  # in seven operations, on a CPU a quarter of GPT-2's update
                setattr(config, name, "gelu_pytorch_tanh")  # the same function in one
        own = adapted if adapted and (adapted / "tokenizer_config.json").is_file() else folder
        tokenizer = AutoTokenizer.from_pretrained(own, config=config, trust_remote_code=False)
        causal_lm, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **reduced,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"policy.model = {str(model)!r} does not load as a causal language model: {first_line(error)}"
        ) from error
    if loading["missing_keys"]:  # transformers draws them at random
        raise UserError(
            f"policy.model = {str(model)!r} is no whole causal language model: its files lack "
            f"{', '.join(sorted(loading['missing_keys'])[:3])}; save it again, or name another."
        )
    if adapted:
        causal_lm = with_adapter(causal_lm, adapted)
    rows = causal_lm.get_input_embeddings().num_embeddings
    if tokenizer.eos_token is not None and tokenizer.eos_token_id >= rows:
        raise UserError(
            f"policy.model = {str(model)!r} has {rows} embeddings, and none for {tokenizer.eos_token!r}, the EOS of its"
            " tokenizer; call `resize_token_embeddings`, train it, and save it again."
        )
    # some have added a pad token without an embedding for it
    if tokenizer.pad_token is None or tokenizer.pad_token_id >= rows:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise UserError(
            f"policy.model = {str(model)!r}: its tokenizer has neither a pad nor an EOS token; name one, as in "
            'tokenizer.eos_token = "</s>", and save it again.'
        )
    if quantization:
        prepare_quantized(causal_lm)
    else:
        causal_lm.to(device)
    if gradient_checkpointing:
        use_gradient_checkpointing(causal_lm)
    if lora is not None:
        with seeded(seed, causal_lm.device):
            causal_lm = with_fresh_adapter(causal_lm, r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout)
    policy = ActorCritic(causal_lm, tokenizer)
    value_head = Path(folder) / VALUE_HEAD
    if value_head.exists():
        policy.value_head.load_state_dict(load_file(value_head))
    prefix = Path(folder) / PREFIX
    if prefix.exists():
        policy.prefix_ids = json.loads(prefix.read_text())["prefix_ids"]
    policy.risk = risk and risk.to(policy.device)
    check_architecture(policy)
    return policy


@torch.no_grad()
def check_architecture(policy: ActorCritic) -> None:
    """Raise `UserError` unless two texts, padded and read token by token, are predicted as in a pass of their own.

    It stands in for the architectures that nobody has tried. A state-space model would take the sampler's cache without
    an error and begin anew at every token; an encoder reads ahead. A config is checked once in a process.
    """
    config, model, tokenizer = policy.model.config, policy.model, policy.processing_class
    checked = f"{config.to_json_string()} {model.dtype}"
    if checked in CHECKED:
        return
    refused = f"a model of type {config.model_type!r} ({type(model).__name__}) cannot be a policy here: "
    if not takes(model, "past_key_values"):
        raise UserError(refused + "it has no cache of keys and values, from which the sampler goes on; choose another.")
    rows, forbidden = len(model.get_output_embeddings().weight), {*policy.forbidden_ids}
    words = [i for i in range(rows) if i not in forbidden]
    long, short = ([words[(i + shift) * len(words) // 10] for i in range(n)] for n, shift in ((7, 0), (4, 3)))
    ids = torch.tensor([long, [tokenizer.pad_token_id] * 3 + short], device=policy.device)
    mask = torch.tensor([[True] * 7, [False] * 3 + [True] * 4], device=policy.device)
    cache = roomy_cache(config, 7)
    try:
        for start, end in ((0, 5), (5, 6), (6, 7)):
            found, _ = policy.logits_and_values(ids[:, start:end], mask[:, :end], 1, cache=cache)
        plain = [model(row[real].unsqueeze(0)).logits[0, -1] for row, real in zip(ids, mask, strict=True)]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of any model's own code
        raise UserError(refused + f"sampling fails ({first_line(error)}); choose another.") from error
    found, plain = (logits.double().softmax(-1) for logits in (found[:, -1], torch.stack(plain)))
    distance = (found - plain).abs().sum(-1).max().item() / 2
    exact = model.dtype == torch.float32 and policy.device.type == "cpu"  # a GPU may compute in TF32
    if distance > (CLOSE if exact else CLOSE_IN_HALF):
        raise UserError(
            refused + "read token by token, with padding, it predicts other tokens than in one pass (total variation "
            f"{distance:.2g}); choose another."
        )
    CHECKED.add(checked)


def check_vocabulary(policy: "Policy", base: "Policy", name: str, then: str) -> None:
    """Raise `UserError` if a policy lacks tokens of the base or gives them other ids; it may have more, like Quark's.

    then: what cannot be done, for the message.
    """
    own, wanted = policy.processing_class, base.processing_class
    if not wanted.get_vocab().items() <= own.get_vocab().items():
        raise UserError(
            f"{name}: its tokenizer has another vocabulary than the base's ({len(own)} and {len(wanted)} tokens), so "
            f"{then}; train it from a model of the same family."
        )


class Reference:
    """pi_ref: a frozen copy of the policy or, for a peft model, the same network with its adapter switched off.

    It reads no alpha, even if the policy does.
    """

    def __init__(self, policy: ActorCritic) -> None:
        peft_model = isinstance(policy.model, peft.PeftModel)
        self._policy = policy if peft_model else copy.deepcopy(policy).requires_grad_(False)

    @torch.no_grad()
    def token_log_probs(self, episodes: Rollout, sampling: SamplingSettings) -> torch.Tensor:
        """log pi_ref(a_t | s_t) (B, T) under the sampler's masked distribution."""
        model = self._policy.model
        adapter_off = model.disable_adapter() if isinstance(model, peft.PeftModel) else nullcontext()
        with adapter_off:
            return self._policy.token_log_probs(replace(episodes, alpha=None), sampling)


def evaluate_tokens(
    policy: ActorCritic, episodes: Rollout, sampling: SamplingSettings, forward: nn.Module | None = None
) -> Rollout:
    """The episodes with log pi(a_t | s_t) and V(s_t) of every completion token as this policy reads them.

    forward: accelerate's wrapper of the policy; in training the gradients must flow through it. Columns that are
    padding in every episode are not read.
    """
    read = episodes.trimmed()
    ids, mask, length = read.completion_ids, read.completion_mask, read.completion_ids.shape[1]
    logits, values = (forward or policy)(
        torch.cat([read.prompt_ids, ids], 1),
        torch.cat([read.prompt_mask, mask], 1),
        length,
        *([] if episodes.alpha is None else [episodes.alpha]),
    )
    forbidden = policy.forbidden_ids, policy.eos_ids
    log_probs = SampledLogProbs.apply(logits, ids, forbidden_tokens(logits, sampling, *forbidden), sampling.temperature)
    missing = (0, episodes.completion_ids.shape[1] - length)
    log_probs, values = (pad(x.masked_fill(~mask, 0.0), missing) for x in (log_probs, values))
    return replace(episodes, log_probs=log_probs, values=values)
