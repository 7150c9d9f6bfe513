"""Tokenizers whose tokens are not the model's rows: unused ids, special tokens without a name, several EOS."""

import pytest
import torch
from datasets import Dataset
from tiny import PROMPTS, WORDS, quark_trainer, sampling_settings
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rarlhf_nb.errors import UserError
from rarlhf_nb.policy import ActorCritic, evaluate_tokens, load_policy
from rarlhf_nb.settings import LoraSettings

NAMES = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[EOS]"}


def tokenizer_of(ids: dict[str, int], *special: str, **names: str) -> PreTrainedTokenizerFast:
    """A tokenizer of words with these ids, and special tokens that only their ids tell apart."""
    words = Tokenizer(WordLevel(ids, unk_token="[UNK]"))
    words.pre_tokenizer = WhitespaceSplit()
    words.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return PreTrainedTokenizerFast(tokenizer_object=words, **names)


def ids_of(*names: str) -> dict[str, int]:
    return {name: i for i, name in enumerate(names)}


def policy_of(tokenizer, rows: int, folder, ends: int | list[int] = 2, **options) -> ActorCritic:
    """A random policy with that many rows, loaded from a folder whose generation config names `ends`."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=rows, max_position_embeddings=64, **sizes))
    model.generation_config = GenerationConfig(eos_token_id=ends, do_sample=True, top_p=0.9)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_policy(folder, **options)


def test_unused_ids_are_never_drawn_and_eos_may_have_the_largest_id(tmp_path):
    used = ids_of("[PAD]", "[UNK]", *WORDS) | {"fine": 12, "[EOS]": 13}  # 10 and 11 are not used
    policy = policy_of(tokenizer_of(used, **NAMES), 16, tmp_path, ends=13)
    sampling = sampling_settings(completion_length=12, minimum_completion_length=0)
    episodes = policy.sample(PROMPTS * 12, sampling, seed=1)
    assert episodes.completion_ids[episodes.completion_mask].unique().tolist() == [*range(2, 10), 12, 13]
    ended = episodes.completion_mask.sum(1) < 12
    last = episodes.completion_ids.gather(1, episodes.completion_mask.sum(1, keepdim=True) - 1)
    assert ended.any() and (last[ended] == 13).all()
    trainer = quark_trainer(policy, sampling=sampling, train_dataset=Dataset.from_dict({"prompt": PROMPTS * 2}))
    assert trainer.reward_ids == [14, 15, 16]
    rows = trainer.policy.model.get_input_embeddings().weight[trainer.reward_ids]
    assert rows.shape == (3, 16) and rows.std() > 0
    trainer.train()


def test_special_tokens_without_a_name_are_never_drawn_and_each_eos_ends_a_completion(tmp_path):
    special = ["[PAD]", "[UNK]", "[EOS]", "[EOT]", "[FILE]"]
    tokenizer = tokenizer_of(ids_of(*special, *WORDS), *special, **NAMES)
    # 6 is "bad": a model made with the defaults of its config names an end that is a word here
    policy = policy_of(tokenizer, 13, tmp_path / "start", ends=[3, 2, 6])
    sampling = sampling_settings(completion_length=8, minimum_completion_length=2)
    episodes = policy.sample(PROMPTS * 30, sampling, seed=1)
    ids, mask = episodes.completion_ids, episodes.completion_mask
    assert ids[mask].unique().tolist() == [2, 3, *range(5, 13)]
    ends = torch.isin(ids, torch.tensor([2, 3])) & mask
    assert not ends[:, :2].any() and {2, 3} == set(ids[ends].tolist())
    assert ends.any(1)[mask.sum(1) < 8].all()
    assert (ends.sum(1) <= 1).all() and (mask.sum(1)[ends.any(1)] == ends.int().argmax(1)[ends.any(1)] + 1).all()
    words = mask.sum(1) - ends.sum(1)
    assert [len(text.split()) for text in episodes.completions] == words.tolist()  # every token but EOS is in the text
    with torch.no_grad():
        again = evaluate_tokens(policy, episodes, sampling).log_probs
        for i in range(8):
            seen = torch.cat([episodes.prompt_ids[i][episodes.prompt_mask[i]], ids[i][mask[i]]])
            logits = policy.model(seen[None]).logits[0, -1 - mask[i].sum() : -1]
            logits[:, [0, 1, 4]] = -torch.inf
            logits[:2, [2, 3]] = -torch.inf
            expected = logits.log_softmax(-1).gather(1, ids[i][mask[i]][:, None])[:, 0]
            torch.testing.assert_close(again[i][mask[i]], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(again, episodes.log_probs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("lora", [None, LoraSettings(r=2, alpha=4)])
def test_every_eos_is_saved_and_nothing_else_of_the_generation_settings(lora, tmp_path):
    special = ["[PAD]", "[UNK]", "[EOS]", "[EOT]"]
    policy = policy_of(tokenizer_of(ids_of(*special, *WORDS), *special, **NAMES), 12, tmp_path, ends=[3, 2], lora=lora)
    policy.save(tmp_path / "saved")
    saved = GenerationConfig.from_pretrained(tmp_path / "saved").to_diff_dict()
    assert {key: saved.get(key) for key in ("eos_token_id", "do_sample", "top_p")} == {
        "eos_token_id": [2, 3],
        "do_sample": None,
        "top_p": None,
    }
    assert load_policy(tmp_path / "saved").eos_ids == [2, 3]


def test_tokens_without_an_embedding_are_named_in_a_prompt_and_otherwise_do_no_harm(tmp_path):
    tokenizer = tokenizer_of(ids_of("[PAD]", "[UNK]", "[EOS]", *WORDS), **NAMES)
    plain = policy_of(tokenizer, 11, tmp_path / "plain").sample(PROMPTS, sampling_settings(), seed=1)
    tokenizer.add_special_tokens({"pad_token": "[MYPAD]", "extra_special_tokens": ["[IMAGE]"]})
    policy = policy_of(tokenizer, 11, tmp_path / "more")
    episodes = policy.sample(PROMPTS, sampling_settings(), seed=1)
    assert episodes.completions == plain.completions
    torch.testing.assert_close(episodes.log_probs, plain.log_probs, atol=1e-6, rtol=0)
    with pytest.raises(UserError, match=r"prompts hold '\[IMAGE\]', token 12 .*, but the model has 11 embeddings"):
        policy.sample(["the film", "a [IMAGE] plot"], sampling_settings(), seed=1)


def test_a_tokenizer_without_a_usable_end_is_named(tmp_path):
    tokenizer = tokenizer_of(ids_of("[PAD]", "[UNK]", *WORDS), **NAMES)
    with pytest.raises(UserError, match=r"has 10 embeddings, and none for '\[EOS\]', the EOS of its tokenizer"):
        policy_of(tokenizer, 10, tmp_path)
    tokenizer = tokenizer_of(ids_of("[UNK]", *WORDS), unk_token="[UNK]")
    with pytest.raises(UserError, match="neither a pad nor an EOS token; name one"):
        policy_of(tokenizer, 9, tmp_path)
