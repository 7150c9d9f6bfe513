"""Models of a few thousand parameters, in the hub's format, for tests that need a real network."""

from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rarlhf_nb.baselines.quark import QuarkTrainer
from rarlhf_nb.policy import ActorCritic, load_policy
from rarlhf_nb.settings import LoraSettings, PPOSettings, QuarkSettings, RiskSettings, SamplingSettings
from rarlhf_nb.trainer import CVaRPPOTrainer

WORDS = ["good", "bad", "film", "the", "is", "was", "plot", "very"]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    ids = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[EOS]", *WORDS])}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]", model_max_length=32
    )


def tiny_policy(seed: int = 0, architecture: str = "gpt2", dtype: torch.dtype = torch.float32) -> ActorCritic:
    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if architecture == "gpt2":
            sizes = {"vocab_size": len(tokenizer), "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
            model = GPT2LMHeadModel(GPT2Config(**sizes, activation_function="gelu_pytorch_tanh"))
        else:
            model = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=16,
                    intermediate_size=32,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    max_position_embeddings=32,
                )
            )
        # larger than the usual initialisation, so that predictions differ between tokens and positions
        for parameter in model.parameters():
            parameter.data.normal_(0, 0.3)
        policy = ActorCritic(model, tokenizer)
        policy.value_head.weight.data.normal_(0, 0.3)
    return policy.to(dtype)


def saved_policy(folder: Path, lora: LoraSettings | None = None) -> ActorCritic:
    """The tiny policy, loaded from folder/start, from which TRL loads its reference as well."""
    if not (folder / "start").exists():
        tiny_policy().save(folder / "start")
    return load_policy(folder / "start", lora, seed=1)


def ppo_settings(**changes) -> PPOSettings:
    return PPOSettings(
        **{"iterations": 6, "batch_size": 8, "epochs": 2, "learning_rate": 1e-3, "kl_coef": 0.1} | changes
    )


def risk_settings(**changes) -> RiskSettings:
    return RiskSettings(**{"alpha": 0.5, "warm_start": 1, "rho": 0.5} | changes)


def sampling_settings(**changes) -> SamplingSettings:
    return SamplingSettings(**{"completion_length": 5, "minimum_completion_length": 5} | changes)


PROMPTS = ["the film is", "the plot was very", "film", "the plot is bad", "very good", "good film was", "is", "bad bad"]


def good_minus_bad(prompts: list[str], completions: list[str], **columns) -> list[float]:
    return [float(c.split().count("good") - c.split().count("bad")) for c in completions]


SAMPLING = sampling_settings(minimum_completion_length=2)
TEXTS = Dataset.from_dict({"prompt": PROMPTS, "topic": list("abcdefgh")})


def ppo_trainer(policy=None, reward=good_minus_bad, kind=CVaRPPOTrainer, **changes) -> CVaRPPOTrainer:
    """A trainer on eight texts; changes are settings of PPO and risk by their names, and other arguments."""
    sections = []
    for make, section in ((ppo_settings, PPOSettings), (risk_settings, RiskSettings)):
        sections.append(make(**{name: changes.pop(name) for name in section.model_fields if name in changes}))
    options = {"sampling": SAMPLING, "train_dataset": TEXTS, "seed": 1} | changes
    return kind(policy or tiny_policy(), reward, *sections, **options)


def quark_trainer(policy=None, reward=good_minus_bad, **changes) -> QuarkTrainer:
    """A trainer on eight texts; changes are settings of Quark by their names, and other arguments."""
    settings = {"quantiles": 3, "steps": 8, "sample_interval": 4, "batch_size": 8, "learning_rate": 1e-3}
    settings |= {name: changes.pop(name) for name in QuarkSettings.model_fields if name in changes}
    options = {"sampling": SAMPLING, "train_dataset": TEXTS, "seed": 1} | changes
    return QuarkTrainer(policy or tiny_policy(), reward, QuarkSettings(**settings), **options)
