"""A young adapter on bfloat16 weights learns, and is saved, as it is in float32."""

import pytest
import torch
from tiny import tiny_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rarlhf_nb.policy import ActorCritic, load_policy
from rarlhf_nb.settings import LoraSettings

STEPS = 20


def nats(policy, ids):
    """The mean log-probability of the tokens of ids (B, L), after the first of each row."""
    logits = policy.model(ids).logits[:, :-1].float()
    return logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).mean()


def gains(folder, dtype):
    """What Adam gains in nats on its own texts: as it trained the adapter, and once saved and loaded."""
    policy = load_policy(folder, LoraSettings(r=8, alpha=16), dtype, seed=1)
    ids = torch.randint(3, 11, (64, 16), generator=torch.Generator().manual_seed(2))
    start = nats(policy, ids).item()
    optimizer = torch.optim.Adam([each for each in policy.model.parameters() if each.requires_grad], lr=1e-5)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (-nats(policy, ids)).backward()
        optimizer.step()
    learnt = nats(policy, ids).item() - start
    policy.save(folder / str(dtype))
    return learnt, nats(load_policy(folder / str(dtype), dtype=dtype), ids).item() - start


LLAMA = {"vocab_size": 11, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
GPT2 = {"vocab_size": 11, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 32}


@pytest.mark.parametrize(
    "model",
    [
        lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
        lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, num_attention_heads=2)),
    ],
)
def test_a_few_small_steps_gain_in_bfloat16_what_they_gain_in_float32(model, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        random = model()
    for parameter in random.parameters():
        if parameter.dim() == 2:
            parameter.data *= 10
    ActorCritic(random.to(torch.bfloat16), tiny_tokenizer()).save(tmp_path)
    expected, _ = gains(tmp_path, torch.float32)
    assert gains(tmp_path, torch.bfloat16) == pytest.approx([expected, expected], rel=0.2)  # rounded away: 0.15 to 0.35
