"""Causal LMs of transformers, tiny and random, in all that this package does: python -m benchmarks.architectures

Each is compared with the bare transformers model in float32, which reads one text at a time, without padding, prefix or
cache; see `COLUMNS`. A cell is the largest difference, `refused` if `load_policy` refuses the model in one line, or the
error. Names after the command try those alone. If all were tried, the page and its CSV are written anew. The exit
status is 1 if anything is neither right nor refused. On two idle cores the whole takes a quarter of an hour.
"""

import argparse
import math
import multiprocessing
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import peft
import torch
import transformers
import trl
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedConfig, PreTrainedTokenizerFast
from trl import GRPOConfig

from benchmarks.worker import REPOSITORY
from rarlhf_nb.baselines.grpo import CVaRConfig, CVaRGRPOTrainer
from rarlhf_nb.baselines.sft import train_sft
from rarlhf_nb.conditioned import AlphaConditionedTrainer
from rarlhf_nb.errors import UserError, first_line
from rarlhf_nb.policy import ActorCritic, Reference, evaluate_tokens, last_hidden, load_policy
from rarlhf_nb.resumable import QUIET
from rarlhf_nb.rollout import Rollout
from rarlhf_nb.sampling import sampler_logits, token_log_probs
from rarlhf_nb.settings import (
    ConditionedSettings,
    LoraSettings,
    PPOSettings,
    RiskSettings,
    SamplingSettings,
    SFTSettings,
)
from rarlhf_nb.trainer import CVaRPPOTrainer

PAGE, CSV = REPOSITORY / "docs" / "architectures.md", REPOSITORY / "docs" / "results" / "architectures.csv"
CLOSE = 1e-3  # nats; what is wrong is off by more, and float32 alone by 1e-6 to 3e-4
PROMPTS = [
    "the film is",
    "the plot was very good",
    "film",
    "the plot is bad",
    "very good",
    "dull, boring",
    "is",
    "Größe",
]
SAMPLING = SamplingSettings(completion_length=7, minimum_completion_length=2, temperature=0.9)
PPO = PPOSettings(iterations=3, batch_size=8, epochs=2, learning_rate=1e-3, kl_coef=0.1)
RISK = RiskSettings(alpha=0.5, warm_start=1, rho=0.6)

# Fields of configs by all their names; each model type takes those that it has. Windows are shorter than texts.
SIZES = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 320),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_dim", "lru_width"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "intermediate_size_mlp", "dff", "d_inner", "d_ff"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers", "num_blocks"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "n_heads", "attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "context_length"), 128),
    **dict.fromkeys(("original_max_position_embeddings",), 128),
    **dict.fromkeys(("sliding_window", "window_size", "attention_window_size"), 5),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 16),
    **dict.fromkeys(("d_head", "d_kv", "kv_channels", "global_head_dim", "hidden_size_per_layer_input"), 8),
    **dict.fromkeys(("state_size", "mamba_d_state", "chunk_size", "mamba_chunk_size", "laurel_rank"), 8),
    **dict.fromkeys(("mamba_n_heads", "n_mamba_heads", "linear_num_value_heads", "mamba_num_heads"), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "altup_num_inputs", "num_kv_shared_layers"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "mamba_dt_rank", "adapter_rank"), 4),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "mamba_d_ssm"), 64),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "n_group", "topk_group", "first_k_dense_replace"), 1),
    **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "rotary_dim": 4, "num_experts_per_tok": 2},
    **{"mamba_d_head": 16, "linear_num_key_heads": 2, "attention_chunk_size": 6, "kv_lora_rank": 8, "q_lora_rank": 16},
    **{"qk_rope_head_dim": 4, "index_topk": 4, "index_head_dim": 8, "index_n_heads": 2, "rescale_every": 2},
    **{
        "block_size": 4,
        "use_mamba_kernels": False,
        "query_pre_attn_scalar": 8,
        "activation_sparsity_pattern": [0.0] * 4,
    },
}
HEADS, ALL_HEADS = {"head_dim": 8}, {"num_key_value_heads": 4}
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"] * 2}
LINEAR = HEADS | {"layer_types": ["linear_attention", "full_attention"] * 2}
HYBRID = ALL_HEADS | {"layers_block_type": ["linear_attention", "hybrid"] * 2}
DECODER = {"is_decoder": True}
NARROW = ALL_HEADS | {"head_dim": 4}


def named(names: str, fields: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return dict.fromkeys(names.split(), fields)


# The fields besides, by name; a name that is no model type gives `model_type` as well.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    **named(
        """
        gpt2 gptj llama qwen2 qwen2_moe opt gpt_neox gpt_bigcode codegen bloom nemotron stablelm olmo olmo2 olmoe
        cohere persimmon openai-gpt ctrl diffllama apertus arcee nanochat bitnet flex_olmo exaone_moe solar_open
        mimo_v2_flash gpt_neox_japanese starcoder2 xglm biogpt granitemoeshared phimoe falcon_mamba mamba rwkv
        """,
        {},
    ),
    **named(
        """
        helium mistral mixtral ministral qwen3 qwen3_moe gemma glm glm4 glm4_moe ernie4_5 hunyuan_v1_dense
        hunyuan_v1_moe seed_oss hrm_text vaultgemma
        """,
        HEADS,
    ),
    **named("gemma2 gemma3_text gemma3n_text gemma4_text gpt_oss", HEADS | WINDOWS),
    **named("cohere2 olmo3 granite_swa modernbert-decoder exaone4", WINDOWS),
    **named("qwen3_next qwen3_5_text minimax", LINEAR),
    **named("deepseek_v2 deepseek_v3 youtu jetmoe", ALL_HEADS),
    **named("bert roberta electra roformer xlnet", DECODER),
    **named("bart pegasus t5 whisper xlm", {}),
    "zamba": HYBRID | {"n_mamba_heads": 2},
    "zamba2": HYBRID,
    "dots1": ALL_HEADS | {"n_shared_experts": 1},
    "reformer": DECODER | {"axial_pos_embds": False, "feed_forward_size": 64, "attention_head_size": 8},
    "qwen2_window": {"model_type": "qwen2", "use_sliding_window": True} | WINDOWS,
    "smollm3": {"use_sliding_window": False},
    "smollm3_window": {"model_type": "smollm3", "use_sliding_window": True} | WINDOWS,
    "mistral_wide": {"model_type": "mistral", "sliding_window": 100} | HEADS,
    "gemma4_dense": {"model_type": "gemma4_text", "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}
    | HEADS
    | WINDOWS,
    "phi": {"partial_rotary_factor": 0.5},
    "phi3": {"sliding_window": None},
    "phi3_window": {"model_type": "phi3"},
    "opt_350m": {"model_type": "opt", "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "mpt": {"attn_config": {"alibi": True}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "falcon": {"new_decoder_architecture": True},
    "falcon_multi_query": {"model_type": "falcon", "multi_query": True},
    "falcon_alibi": {"model_type": "falcon", "alibi": True, "multi_query": False, "num_kv_heads": 4},
    "falcon_h1": {"embedding_multiplier": 3.0},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "bamba": {"attn_layer_indices": [1, 3]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2, "mamba_d_head": 16},
    "mamba2": {"head_dim": 16},
    "xlstm": {"num_heads": 2, "chunk_size": 16},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "granite": {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5},
    "granitemoe": {"embedding_multiplier": 3.0, "logits_scaling": 2.0},
    "longcat_flash": NARROW,
    "deepseek_v32": NARROW,
    "deepseek_v32_wide": NARROW | {"model_type": "deepseek_v32", "index_topk": 100},
    "llama4_text": HEADS | {"num_experts_per_tok": 1, "interleave_moe_layer_step": 2},
    "minicpm3": ALL_HEADS | {"dim_model_base": 16},
    "bert_encoder": {"model_type": "bert"},
    # a vision tower besides the text model, of the fields of another row
    "gemma3": {"text": "gemma3_text", "mm_tokens_per_image": 4},
    "gemma4": {"text": "gemma4_text", "audio_config": None},
    "gemma4_vision_dense": {"model_type": "gemma4", "text": "gemma4_dense", "audio_config": None},
    "qwen3_5": {"text": "qwen3_5_text"},
    "llama4": {"text": "llama4_text"},
}
VISION = {"hidden_size": 16, "intermediate_size": 32, "image_size": 28, "patch_size": 14, "out_hidden_size": 32}
VISION |= dict.fromkeys(("num_hidden_layers", "depth"), 1) | dict.fromkeys(("num_attention_heads", "num_heads"), 2)
VISION |= {"num_key_value_heads": 2, "head_dim": 8, "num_position_embeddings": 16, "position_embedding_size": 64}
VISION |= dict.fromkeys(("vision_output_dim", "projector_input_dim", "projector_output_dim"), 16)
STATE = (
    "A_log",
    "dt_bias",
    "dt_proj.bias",
    "recurrent_param",
    "e_score_correction_bias",
    "time_",
    "gate.bias",
    "gate_",
)


def config_of(name: str) -> PreTrainedConfig:
    fields = dict(ARCHITECTURES[name])
    kind = transformers.CONFIG_MAPPING[fields.pop("model_type", name)]
    if "text" in fields:
        text, tower = config_of(fields.pop("text")).to_dict(), fields_of(type(kind().vision_config))
        return kind(text_config=text, vision_config={key: VISION[key] for key in VISION.keys() & tower}, **fields)
    own, aliases = fields_of(kind), getattr(kind, "attribute_map", {})
    sizes = {key: value for key, value in SIZES.items() if key in own and aliases.get(key) not in SIZES.keys() & own}
    return kind(**(sizes | fields))


def fields_of(kind: type) -> set[str]:
    return {field for base in kind.__mro__ for field in getattr(base, "__annotations__", {})}


def build(name: str, folder: Path) -> None:
    """Save a model whose predictions depend on all tokens and places, and a tokenizer of bytes."""
    config = config_of(name)
    for part in (config, config.get_text_config()):  # TRL trains with dropout
        for field, value in [*vars(part).items()]:
            if "drop" in field and isinstance(value, float):
                setattr(part, field, 0.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = transformers.WhisperForConditionalGeneration(config) if name == "whisper" else auto.from_config(config)
        for key, weight in model.named_parameters():
            if not any(part in key for part in STATE):  # those must stay in their range
                if weight.dim() == 1:
                    weight.data.add_(0.1 * torch.randn_like(weight))
                else:
                    embedding = any(part in key for part in ("embed", "wte", "wpe", "lm_head"))
                    size = (
                        0.4
                        if embedding
                        else 1.2 / math.sqrt(min(weight.shape[-2:]) if weight.dim() > 2 else weight.shape[-1])
                    )
                    weight.data.normal_(0, size)
    model.save_pretrained(folder)
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<bos>", "<eos>", *pre_tokenizers.ByteLevel.alphabet()])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


@dataclass
class Case:
    """An architecture in a folder."""

    folder: Path

    def policy(self, **options: Any) -> ActorCritic:
        policy = load_policy(self.folder, **options)
        policy.value_head.weight.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(5))
        return policy

    def plain(self, folder: Path | None = None) -> torch.nn.Module:
        return AutoModelForCausalLM.from_pretrained(folder or self.folder, dtype=torch.float32).eval()


def reward(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
    return [text.count("e") - 0.05 * len(text) + 0.01 * i for i, text in enumerate(completions)]


@torch.no_grad()
def from_plain(model: torch.nn.Module, policy: ActorCritic, found: Rollout, values: bool = False) -> float:
    """The largest difference of log-probabilities, and values, from those of one pass over each text alone."""
    distance = 0.0
    for i, mask in enumerate(found.completion_mask):
        completion = found.completion_ids[i : i + 1, mask]
        prefix = torch.tensor(policy.prefix_ids, dtype=completion.dtype)
        ids = torch.cat([prefix, found.prompt_ids[i][found.prompt_mask[i]], completion[0]]).unsqueeze(0)
        places = slice(-1 - completion.shape[1], -1)
        with last_hidden(model) as states:
            logits = sampler_logits(model(ids).logits[:, places], SAMPLING, policy.forbidden_ids, policy.eos_ids)
        distance = max(distance, largest(token_log_probs(logits, completion)[0] - found.log_probs[i][mask]))
        if values:
            expected = policy.value_head(states[0][0, places]).squeeze(-1)
            distance = max(distance, largest(expected - found.values[i][mask]))
    return distance


def largest(difference: torch.Tensor) -> float:
    return difference.abs().max().nan_to_num(math.inf).item()


def sampled(case: Case) -> float:
    policy = case.policy()
    return from_plain(case.plain(), policy, policy.sample(PROMPTS, SAMPLING, seed=1), values=True)


def read(case: Case) -> float:
    policy = case.policy()
    found = evaluate_tokens(policy, policy.sample(PROMPTS, SAMPLING, seed=1), SAMPLING)
    return from_plain(case.plain(), policy, found, values=True)


def alone(case: Case) -> float:
    policy = case.policy()
    whole = policy.sample(PROMPTS, SAMPLING, seed=1)
    worst = 0.0
    for i, prompt in enumerate(PROMPTS):
        one = policy.sample([prompt], SAMPLING, seed=1, first=i)
        length = one.completion_ids.shape[1]
        worst = max(worst, largest(one.log_probs[0] - whole.log_probs[i, :length]))
        worst = worst if one.completions[0] == whole.completions[i] else math.inf
    return worst


def prefix(case: Case) -> float:
    policy = case.policy()
    policy.prefix_ids = [20, 30, 40, 50]
    drawn, plain = policy.sample(PROMPTS, SAMPLING, seed=1), case.plain()
    return max(from_plain(plain, policy, found) for found in (drawn, evaluate_tokens(policy, drawn, SAMPLING)))


def trained(policy: ActorCritic, kind: type[CVaRPPOTrainer] = CVaRPPOTrainer, **options: Any) -> float:
    """The first ratio's difference from 1, in three iterations of PPO."""

    class Trainer(kind):
        firsts = []

        def backward(self, *args: Any) -> dict[str, float]:
            terms = super().backward(*args)
            if len(self.firsts) < self.iteration:
                self.firsts.append(abs(terms["ratio_mean"] - 1))
            return terms

    texts = Dataset.from_dict({"prompt": PROMPTS})
    trainer = Trainer(policy, reward, PPO, RISK, SAMPLING, train_dataset=texts, **options)
    rows = trainer.train().select_dtypes("number")
    return max(trainer.firsts) if len(trainer.firsts) == len(rows) and rows.notna().all(None) else math.inf


def saved(case: Case) -> float:
    """After training; the first ratio counts as well."""
    policy = case.policy()
    ratio = trained(policy)
    with tempfile.TemporaryDirectory() as folder:
        policy.save(folder)
        again, plain = load_policy(folder), case.plain(Path(folder))
    drawn = policy.sample(PROMPTS, SAMPLING, seed=3)
    same = again.sample(PROMPTS, SAMPLING, seed=3).completions == drawn.completions
    return max(ratio, from_plain(plain, policy, drawn, values=True)) if same else math.inf


def lora(case: Case) -> float:
    """Off it is the start, on the sampler's policy, merged what is saved; and it trains."""
    policy = case.policy(lora=LoraSettings(r=4, alpha=8))
    dice = torch.Generator().manual_seed(3)
    for key, weight in policy.model.named_parameters():
        if "lora_B" in key:
            weight.data.normal_(0, 0.1, generator=dice)
    drawn = policy.sample(PROMPTS, SAMPLING, seed=1)
    start = replace(drawn, log_probs=Reference(policy).token_log_probs(drawn, SAMPLING))
    if largest(start.log_probs - drawn.log_probs) < CLOSE:
        return math.inf  # nothing was adapted
    with torch.no_grad():
        again = largest(evaluate_tokens(policy, drawn, SAMPLING).log_probs - drawn.log_probs)
    with tempfile.TemporaryDirectory() as folder:
        policy.save(folder)
        merged = from_plain(case.plain(Path(folder)), policy, drawn)
    return max(from_plain(case.plain(), policy, start), again, merged, trained(policy))


def conditioned(case: Case) -> float:
    policy = case.policy()
    ratio = trained(policy, AlphaConditionedTrainer, conditioned=ConditionedSettings(groups=4, iterations=2))
    policy.risk.weight.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(4))
    one = policy.sample(PROMPTS, SAMPLING, seed=1, alpha=1.0)
    drawn = policy.sample(PROMPTS, SAMPLING, seed=1, alpha=0.2)
    fixed = policy.at(0.2)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        fixed.save(f"{folder}/fixed")
        policy.save(f"{folder}/any")
        again = load_policy(f"{folder}/any").sample(PROMPTS, SAMPLING, seed=1, alpha=0.2)
        plain = from_plain(case.plain(Path(folder) / "fixed"), policy, drawn)
        unread = largest(evaluate_tokens(policy, replace(one, alpha=None), SAMPLING).log_probs - one.log_probs)
        own = largest(evaluate_tokens(fixed, replace(drawn, alpha=None), SAMPLING).log_probs - drawn.log_probs)
    return max(ratio, plain, unread, own) if again.completions == drawn.completions else math.inf


def sft(case: Case) -> float:
    """The first loss, without that of a router, which is no likelihood; then what is sampled and saved."""
    policy, plain, losses = case.policy(), case.plain(), []
    policy.model.config.get_text_config().router_aux_loss_coef = 0.0
    for text in PROMPTS:
        ids = policy.processing_class(text + policy.processing_class.eos_token, return_tensors="pt")["input_ids"]
        losses.append(-token_log_probs(plain(ids).logits[0, :-1], ids[0, 1:]).detach())
    log = train_sft(policy, PROMPTS, SFTSettings(learning_rate=1e-3, batch_size=8, epochs=2, max_length=64), seed=0)
    drawn = policy.sample(PROMPTS, SAMPLING, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        policy.save(folder)
        distance = from_plain(case.plain(Path(folder)), policy, drawn)
    return max(distance, largest(torch.cat(losses).mean() - log[0]["loss"]))


def grpo(case: Case) -> float:
    policy = case.policy()
    drawn = policy.sample(PROMPTS, SAMPLING, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 7, "max_steps": 1}
        args = GRPOConfig(folder, use_cpu=True, bf16=False, gradient_checkpointing=False, **QUIET, **sizes)
        args.temperature = SAMPLING.temperature
        options = {"processing_class": policy.processing_class, "train_dataset": Dataset.from_dict({"prompt": PROMPTS})}
        trainer = CVaRGRPOTrainer(policy.model, reward, args=args, risk=CVaRConfig(alpha=0.5), **options)
        policy.eval()
        ids, mask = (
            torch.cat([getattr(drawn, f"{part}_{what}") for part in ("prompt", "completion")], 1)
            for what in ("ids", "mask")
        )
        with torch.no_grad():
            found, *_ = trainer._get_per_token_logps_and_entropies(
                policy.model, ids, mask.long(), drawn.completion_ids.shape[1]
            )
            worst, plain = 0.0, case.plain()
            for i, real in enumerate(drawn.completion_mask):  # over the whole vocabulary, as TRL takes it
                own = drawn.completion_ids[i : i + 1, real]
                logits = plain(ids[i : i + 1, mask[i]]).logits[:, -1 - own.shape[1] : -1] / SAMPLING.temperature
                worst = max(worst, largest(token_log_probs(logits, own)[0] - found[i][real]))
        trainer.train()
    return worst if all(weight.isfinite().all() for weight in policy.model.parameters()) else math.inf


COLUMNS: dict[str, tuple[Callable[[Case], float], str]] = {
    "sampled": (sampled, "log-probabilities and values of the sampler"),
    "read": (read, "the same of the second reading, which training uses"),
    "alone": (alone, "the sampler on one prompt alone and in a batch"),
    "prefix": (prefix, "with tokens before every prompt"),
    "PPO, saved": (saved, "three iterations of PPO, first ratio 1; saved, and reloaded by transformers alone"),
    "LoRA": (lora, "off, on, trained by PPO, and merged"),
    "α": (
        conditioned,
        "trained for every α; at α 1 the plain policy; `at(α)` as `sample(alpha=α)`; saved and reloaded",
    ),
    "SFT": (sft, "TRL's SFT, then sampled and saved"),
    "GRPO": (grpo, "log-probabilities of `CVaRGRPOTrainer`, and a step"),
}


def row_of(name: str) -> dict[str, Any]:
    """The cells of one architecture: largest differences, or what was said instead."""
    row = {"architecture": name}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            build(name, Path(folder))
            load_policy(folder)
        except UserError as error:
            return row | {"refused": (str(error).partition("here: ")[2] or str(error)).replace(folder, "…")}
        except Exception as error:
            return row | dict.fromkeys(COLUMNS, f"{type(error).__name__}: {first_line(error)}")
        for column, (check, _) in COLUMNS.items():
            try:
                row[column] = check(Case(Path(folder)))
            except UserError as error:
                row[column] = f"refused: {error}"
            except Exception as error:  # of any model's own code
                row[column] = f"{type(error).__name__}: {first_line(error)}"
    return row


def right(cell: Any) -> bool:
    return isinstance(cell, float) and cell < CLOSE


def faults(row: dict[str, Any]) -> list[str]:
    """What is neither right nor refused, one line each."""
    if "refused" in row:
        return []
    return [
        f"{column}: {row[column]}"
        for column in COLUMNS
        if not right(row[column]) and "refused: " not in str(row[column])
    ]


def page(rows: list[dict[str, Any]]) -> str:
    tried = [row for row in rows if "refused" not in row]
    whole = sum(all(right(row[column]) for column in COLUMNS) for row in tried)
    versions = ", ".join(f"{module.__name__} {module.__version__}" for module in (transformers, trl, peft, torch))
    lines = [
        "# Which causal LMs",
        "",
        f"Of {len(rows)} architectures of transformers, tiny and random, {whole} are right in every column and "
        f"{len(rows) - len(tried)} are refused in one line when they load. Made by `python -m "
        f"benchmarks.architectures` with {versions}, in float32 on a CPU. ✓: within {CLOSE:g} nats of the bare model, "
        "which reads each text alone, without padding, prefix or cache; the largest differences are in "
        "[architectures.csv](results/architectures.csv). Windows and chunks are shorter than the texts.",
        "",
        *(f"- **{column}**: {what}" for column, (_, what) in COLUMNS.items()),
        "",
        "| |" + "|".join(COLUMNS) + "|",
        "|---|" + ":-:|" * len(COLUMNS),
    ]
    notes = []
    for row in tried:
        cells = ["✓" if right(row[column]) else f"[{len(notes) + 1}]" for column in COLUMNS]
        wrong = [f"{column}: {row[column]}" for column in COLUMNS if not right(row[column])]
        notes += ["; ".join(wrong)] if wrong else []
        lines.append(f"| {row['architecture']} |" + "|".join(cells) + "|")
    lines += ["", *(f"{i}. {note}" for i, note in enumerate(notes, 1)), "", "## Refused when they load", ""]
    lines += [f"- {row['architecture']}: {row['refused']}" for row in rows if "refused" in row]
    return "\n".join(lines).replace("<", "&lt;") + "\n"


def quiet() -> None:
    """In each process: one thread, no progress bars, no network."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    disable_progress_bars()


def rows_of(names: list[str], processes: int) -> Iterator[dict[str, Any]]:
    """The rows as they are done, from as many processes."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=quiet) as pool:
        yield from (future.result() for future in as_completed([pool.submit(row_of, name) for name in names]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="architectures; all if none is named", metavar="NAMES")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    names, rows = options.names or [*ARCHITECTURES], {}
    for row in rows_of(names, options.processes):
        rows[row["architecture"]] = row
        said = [f"refused: {row['refused']}"] if "refused" in row else faults(row)
        print(f"{row['architecture']:20}", "\n    ".join(said) or "right", flush=True)
    done = [rows[name] for name in names]
    if not options.names:
        pd.DataFrame(done, columns=["architecture", *COLUMNS, "refused"]).to_csv(CSV, index=False, float_format="%.1e")
        PAGE.write_text(page(done), encoding="utf-8")
    return int(any(map(faults, done)))


if __name__ == "__main__":
    raise SystemExit(main())
