"""Models other than GPT-2 and Llama, tiny and random: what is sampled and read is what one unpadded pass finds."""

from dataclasses import replace

import pytest
import torch
from tiny import PROMPTS, TEXTS, good_minus_bad, sampling_settings, tiny_tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    DeepseekV32Config,
    FalconH1Config,
    Gemma2Config,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GptOssConfig,
    GraniteMoeConfig,
    Lfm2Config,
    Llama4TextConfig,
    MambaConfig,
    MiniMaxConfig,
    MistralConfig,
    MptConfig,
    OPTConfig,
    PreTrainedConfig,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    ZambaConfig,
)
from trl import GRPOConfig

from rarlhf_nb.baselines.grpo import CVaRConfig, CVaRGRPOTrainer
from rarlhf_nb.baselines.sft import train_sft
from rarlhf_nb.errors import UserError
from rarlhf_nb.policy import ActorCritic, evaluate_tokens, load_policy
from rarlhf_nb.risk_embedding import RiskEmbedding
from rarlhf_nb.rollout import Rollout
from rarlhf_nb.sampling import sampler_logits, token_log_probs
from rarlhf_nb.settings import SFTSettings

SIZE = {"vocab_size": 11, "hidden_size": 16, "num_hidden_layers": 2, "max_position_embeddings": 64}
SIZE |= {"intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
IDS = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2}
LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5}
GEMMA = SIZE | IDS | {"head_dim": 8}
GEMMA_3N = {"vocab_size_per_layer_input": 11, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0}
GEMMA_3N |= {"laurel_rank": 8, "activation_sparsity_pattern": [0.0, 0.0]}
MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}
LINEAR = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 2}
ZAMBA = {"mamba_d_state": 8, "n_mamba_heads": 2, "mamba_dt_rank": 4}
GRANITE_MOE = GraniteMoeConfig(**SIZE, **IDS, num_local_experts=4, num_experts_per_tok=2)
SAMPLING = sampling_settings(minimum_completion_length=2)


def policy_of(config: PreTrainedConfig, folder) -> ActorCritic:
    """The policy of a random model, as it loads from a folder in the hub's format."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "A_log" not in name:
                parameter.data.normal_(0, 0.3)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return load_policy(folder)


def check_against_plain_passes(policy: ActorCritic, found: Rollout, prefix: list[int]) -> None:
    """Log-probabilities and values of each episode are those of one pass of its own, without padding or cache."""
    for i, mask in enumerate(found.completion_mask):
        prompt, completion = found.prompt_ids[i][found.prompt_mask[i]], found.completion_ids[i : i + 1, mask]
        ids = torch.cat([torch.tensor(prefix, dtype=prompt.dtype), prompt, completion[0]]).unsqueeze(0)
        hidden = policy.model.base_model(ids).last_hidden_state
        places = slice(-1 - completion.shape[1], -1)
        logits = sampler_logits(policy.model(ids).logits[:, places], SAMPLING, policy.forbidden_ids, policy.eos_ids)
        expected = token_log_probs(logits, completion)[0]
        torch.testing.assert_close(found.log_probs[i][mask], expected, atol=1e-5, rtol=0)
        values = policy.value_head(hidden[0, places]).squeeze(-1)
        torch.testing.assert_close(found.values[i][mask], values, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**GEMMA, sliding_window=5),
        Gemma3TextConfig(**GEMMA, **LAYERS),
        Gemma3nTextConfig(**GEMMA, **LAYERS, **GEMMA_3N),
        GptOssConfig(**GEMMA, **LAYERS, num_local_experts=2, num_experts_per_tok=1),
        Lfm2Config(**SIZE, **IDS, layer_types=["conv", "full_attention"]),
        Qwen3NextConfig(**GEMMA, **LINEAR, layer_types=["linear_attention", "full_attention"]),
        MptConfig(vocab_size=11, d_model=16, n_layers=2, n_heads=2, max_seq_len=64),
        OPTConfig(**SIZE, **IDS, ffn_dim=32, word_embed_proj_dim=8, do_layer_norm_before=False),  # as OPT-350m
    ],
    ids=lambda config: config.model_type,
)
def test_padding_stands_before_the_prefix(config, tmp_path):
    """Prompts of one to four words; a window, a convolution and a recurrent state would see padding further in."""
    policy = policy_of(config, tmp_path)
    policy.value_head.weight.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(7))
    policy.prefix_ids = [4, 7, 3]
    drawn = policy.sample(PROMPTS, SAMPLING, seed=1)
    assert not drawn.prompt_mask.all()
    with torch.no_grad():
        for found in (drawn, evaluate_tokens(policy, drawn, SAMPLING)):
            check_against_plain_passes(policy, found, policy.prefix_ids)


@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(**GEMMA, **LAYERS),  # the embedding layer scales its rows
        Gemma3TextConfig(**GEMMA, **LAYERS),
        Gemma4TextConfig(**GEMMA, **LAYERS, global_head_dim=8, vocab_size_per_layer_input=11, num_kv_shared_layers=0),
        ZambaConfig(**GEMMA, **ZAMBA, layers_block_type=["hybrid", "hybrid"]),  # its blocks share weights
        # scales the embeddings of ids, not `inputs_embeds`; its config holds an infinite number
        FalconH1Config(**SIZE, **IDS, **MAMBA, embedding_multiplier=3.0),
    ],
    ids=lambda config: config.model_type,
)
def test_a_policy_with_alpha_fixed_is_the_one_that_was_sampled(config, tmp_path):
    policy = policy_of(config, tmp_path / "start")
    plain = policy.sample(PROMPTS, SAMPLING, seed=1)
    policy.risk = RiskEmbedding(16, alpha_min=0.1)
    policy.risk.weight.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(7))
    one = policy.sample(PROMPTS, SAMPLING, seed=1, alpha=1.0)
    torch.testing.assert_close(one.log_probs, plain.log_probs, atol=1e-5, rtol=0)  # at alpha 1 it is not conditioned
    episodes = policy.sample(PROMPTS, SAMPLING, seed=1, alpha=0.2)
    unconditioned = evaluate_tokens(policy, replace(episodes, alpha=None), SAMPLING).log_probs
    assert (episodes.log_probs - unconditioned).abs().max() > 0.1
    policy.save(tmp_path / "any")
    policy.at(0.2).save(tmp_path / "fixed")
    for read, alpha in (
        (policy, episodes.alpha),
        (load_policy(tmp_path / "any"), episodes.alpha),
        (policy.at(0.2), None),
        (load_policy(tmp_path / "fixed"), None),
    ):
        found = evaluate_tokens(read, replace(episodes, alpha=alpha), SAMPLING).log_probs
        torch.testing.assert_close(found, episodes.log_probs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "config",
    [
        Qwen3MoeConfig(**GEMMA, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8),
        GRANITE_MOE,
        Llama4TextConfig(**GEMMA, num_local_experts=4, num_experts_per_tok=1, intermediate_size_mlp=32),
    ],
    ids=lambda config: config.model_type,
)
def test_a_mixture_of_experts_is_sampled_after_sft_and_saved_as_it_was(config, tmp_path):
    policy = policy_of(config, tmp_path / "start")
    before = policy.sample(PROMPTS, SAMPLING, seed=1)
    settings = SFTSettings(learning_rate=1e-2, batch_size=4, epochs=1, max_length=8)
    log = train_sft(policy, ["the film is good", "the plot was very bad"] * 4, settings, seed=0)
    assert len(log) == 2 and (policy.token_log_probs(before, SAMPLING) - before.log_probs).abs().max() > 0.01
    policy.save(tmp_path / "trained")
    saved, start = (AutoConfig.from_pretrained(tmp_path / name) for name in ("trained", "start"))
    assert saved.output_router_logits is False and saved.router_aux_loss_coef == start.router_aux_loss_coef > 0
    # what TRL alone would have saved
    saved.output_router_logits = True
    saved.save_pretrained(tmp_path / "trained")
    with torch.no_grad():
        for found in (policy, load_policy(tmp_path / "trained")):
            check_against_plain_passes(found, found.sample(PROMPTS, SAMPLING, seed=1), [])


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        # would begin anew at every token, without an error
        (MambaConfig(**IDS, vocab_size=11, hidden_size=16, num_hidden_layers=1, state_size=4), "no cache of keys"),
        (MiniMaxConfig(**GEMMA, num_local_experts=2), "sampling fails .*MiniMax uses cache of its own"),
        (BertConfig(**SIZE, **IDS), "read token by token, with padding, it predicts other tokens"),  # reads ahead
    ],
    ids=["mamba", "minimax", "bert"],
)
def test_a_model_that_cannot_be_sampled_rightly_is_refused_when_it_loads(config, reason, tmp_path):
    with pytest.raises(UserError, match=rf"a model of type '{config.model_type}' .*cannot be a policy .*{reason}"):
        policy_of(config, tmp_path)


def grpo_trainer(policy: ActorCritic, folder) -> CVaRGRPOTrainer:
    sizes = {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 3, "max_steps": 1}
    args = GRPOConfig(str(folder), use_cpu=True, bf16=False, report_to="none", **sizes)
    data = {"processing_class": policy.processing_class, "train_dataset": TEXTS}
    return CVaRGRPOTrainer(policy.model, good_minus_bad, args=args, risk=CVaRConfig(alpha=0.5), **data)


def test_a_model_is_refused_if_trl_would_train_it_on_other_predictions(tmp_path):
    """BERT has a layer between its trunk and the output embedding, and TRL leaves it out."""
    policy = policy_of(BertConfig(**SIZE, **IDS, is_decoder=True), tmp_path / "start")
    settings = SFTSettings(learning_rate=1e-2, batch_size=4, epochs=1, max_length=8)
    refused = pytest.raises(UserError, match="type 'bert' .*cannot be trained by TRL: its fused head .* PPO")
    with refused:
        train_sft(policy, ["the film is good"] * 4, settings, seed=0)
    with refused:
        grpo_trainer(policy_of(BertConfig(**SIZE, **IDS, is_decoder=True), tmp_path / "start"), tmp_path / "grpo")


def test_grpo_trains_a_mixture_of_experts_that_calls_their_number_otherwise(tmp_path):
    policy = policy_of(GRANITE_MOE, tmp_path / "start")
    before = policy.sample(PROMPTS, SAMPLING, seed=1)
    grpo_trainer(policy, tmp_path / "grpo").train()
    policy.eval()
    assert policy.token_log_probs(before, SAMPLING).isfinite().all()


def test_a_batch_longer_than_a_sparse_attention_chooses_is_refused(tmp_path):
    """DeepSeek-V3.2 would choose other tokens in a padded batch than in a text of its own."""
    ranks = {"kv_lora_rank": 8, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
    index = {"index_topk": 9, "index_head_dim": 8, "index_n_heads": 2, "head_dim": 4}
    config = DeepseekV32Config(**SIZE | {"num_key_value_heads": 2}, **IDS, **ranks, **index, first_k_dense_replace=2)
    policy = policy_of(config, tmp_path)
    with torch.no_grad():
        check_against_plain_passes(policy, policy.sample(PROMPTS, SAMPLING, seed=1), [])
    policy.prefix_ids = [4]
    with pytest.raises(UserError, match="make 10 tokens, but the model's context holds 9; shorten"):
        policy.sample(PROMPTS, SAMPLING, seed=1)
