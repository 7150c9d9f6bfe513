"""Prompts that are conversations: in the library's trainers, in TRL's, and in a run."""

import json

import pandas as pd
import pytest
import torch
from datasets import Dataset
from small_run import SMALL
from tiny import WORDS, ppo_trainer, quark_trainer, sampling_settings
from tiny_classifier import classifier_tokenizer, distilbert
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, RLOOConfig

from rarlhf_nb.baselines.best_of_n import BestOfN
from rarlhf_nb.baselines.grpo import CVaRConfig, CVaRGRPOTrainer, CVaRRLOOTrainer
from rarlhf_nb.baselines.sft import train_sft
from rarlhf_nb.data.tasks import load_task, read_texts
from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.evaluation.evaluate import held_out_log_likelihoods
from rarlhf_nb.lab.evaluation.tail_prompts import tail_prompts_html, tail_prompts_table
from rarlhf_nb.lab.experiment import Experiment
from rarlhf_nb.lab.model_card import model_card
from rarlhf_nb.policy import evaluate_tokens, load_policy
from rarlhf_nb.rewards import ClassifierReward
from rarlhf_nb.settings import SFTSettings, TaskSettings

SPECIAL = ["[PAD]", "[UNK]", "[EOS]", "[END]", "[BOS]", "[TURN]"]
TEMPLATE = (
    "{{ bos_token }} {% for m in messages %}[TURN] {{ m['role'] }} {{ m['content'] }} [END] {% endfor %}"
    "{% if add_generation_prompt %}[TURN] assistant {% endif %}"
)
SYSTEM, ASK, ANSWER = ({"role": role, "content": "the film"} for role in ("system", "user", "assistant"))
CHATS = [
    [{"role": "user", "content": "the film is"}],
    [SYSTEM, {"role": "user", "content": "the plot was very"}],
    [{"role": "user", "content": "film"}, {"role": "assistant", "content": "bad"}, {"role": "user", "content": "good"}],
    [{"role": "user", "content": "is the plot good"}],
]
SAMPLING = sampling_settings(completion_length=6, minimum_completion_length=0)


def chat_policy(folder, template=TEMPLATE):
    """A chat model: its tokenizer adds a BOS to texts, as the template does, and a turn ends with one of two EOS."""
    ids = {name: i for i, name in enumerate([*SPECIAL, *WORDS, "system", "user", "assistant"])}
    words = Tokenizer(WordLevel(ids, unk_token="[UNK]"))
    words.pre_tokenizer = WhitespaceSplit()
    words.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    words.post_processor = TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", ids["[BOS]"])])
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "eos", "bos")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **names)
    tokenizer.chat_template = template
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(ids), max_position_embeddings=64, **sizes))
    model.generation_config = GenerationConfig(eos_token_id=[2, 3])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_policy(folder)


class Watching:
    """A reward that notes what it is given."""

    def __call__(self, prompts, completions, **columns):
        self.prompts, self.completions = prompts, completions
        return [float(completion[0]["content"].count("good")) for completion in completions]

    __name__ = "watching"


def test_a_conversation_is_read_as_its_template_writes_it_and_rewards_get_messages(tmp_path):
    policy, reward = chat_policy(tmp_path), Watching()
    tokenizer = policy.processing_class
    ids, mask = policy.tokenize(CHATS)
    for row, real, chat in zip(ids, mask, CHATS, strict=True):
        wanted = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        assert row[real].tolist() == wanted and wanted.count(tokenizer.bos_token_id) == 1
    mixed, real = policy.tokenize(["the film", CHATS[0]])  # a text keeps the BOS that the tokenizer adds
    assert mixed[0][real[0]].tolist() == tokenizer("the film")["input_ids"]

    trainer = ppo_trainer(policy, reward, sampling=SAMPLING, train_dataset=[{"prompt": chat} for chat in CHATS * 2])
    trainer.train()
    rollout = trainer.rollout
    assert reward.prompts == rollout.prompts and all(chat in CHATS for chat in reward.prompts)
    assert reward.completions == [[{"role": "assistant", "content": text}] for text in rollout.completions]
    last = rollout.completion_ids.gather(1, rollout.completion_mask.sum(1, keepdim=True) - 1)
    assert {2, 3} & set(last.flatten().tolist()) and not any("[" in text for text in rollout.completions)

    episodes = policy.sample(CHATS, SAMPLING, seed=1)
    read = evaluate_tokens(policy, episodes, SAMPLING).log_probs
    for i, chat in enumerate(CHATS):
        drawn = episodes.completion_ids[i][episodes.completion_mask[i]]
        start = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        logits = policy.model(torch.tensor([start + drawn.tolist()])).logits[0, len(start) - 1 : -1]
        logits[:, policy.forbidden_ids] = -torch.inf
        plain = logits.log_softmax(-1).gather(1, drawn[:, None]).squeeze(1)
        torch.testing.assert_close(read[i][: len(drawn)], plain, atol=1e-5, rtol=0)


def test_quark_and_best_of_n_take_conversations(tmp_path):
    reward, policy = Watching(), chat_policy(tmp_path)
    BestOfN(policy, reward, 2).sample(CHATS, SAMPLING, seed=1)
    assert reward.prompts == [chat for chat in CHATS for _ in range(2)]
    trainer = quark_trainer(policy, reward, sampling=SAMPLING, train_dataset=Dataset.from_dict({"prompt": CHATS * 2}))
    trainer.train()
    assert all(chat in CHATS for chat in trainer.pool.prompts) and reward.completions[0][0]["role"] == "assistant"


@pytest.mark.parametrize("kind, config", [(CVaRGRPOTrainer, GRPOConfig), (CVaRRLOOTrainer, RLOOConfig)])
def test_the_trainers_of_trl_train_on_the_tail_of_conversations(kind, config, tmp_path):
    chat_policy(tmp_path / "model")
    reward, classifier = Watching(), ClassifierReward(distilbert(), classifier_tokenizer(), 1)
    settings = {"max_steps": 1, "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 6}
    trainer = kind(
        model=str(tmp_path / "model"),
        reward_funcs=[reward, classifier],
        args=config(str(tmp_path), report_to=[], save_strategy="no", use_cpu=True, bf16=False, seed=3, **settings),
        train_dataset=Dataset.from_dict({"prompt": CHATS}),
        risk=CVaRConfig(alpha=0.5),
    )
    trainer.train()
    texts = [
        "\n".join(turn["content"] for turn in prompt + completion if turn["role"] != "system")
        for prompt, completion in zip(reward.prompts, reward.completions, strict=True)
    ]
    logged = trainer._logs["rewards"]["POSITIVE_logit"]
    assert list(logged) == pytest.approx(classifier.score(texts), abs=1e-5)
    assert sum(advantage == 0 for advantage in trainer._logs["advantages"]) >= 4  # outside the tail


def test_a_classifier_reads_a_conversation_through_its_chat_template_or_else_the_contents(tmp_path):
    completion, tokenizer = [{"role": "assistant", "content": "good"}], classifier_tokenizer()
    plain = ClassifierReward(distilbert(), tokenizer, 1)
    assert plain([CHATS[1]], [completion]) == plain.score(["the plot was very\ngood"])
    tokenizer = classifier_tokenizer()
    tokenizer.chat_template = "[CLS] {% for m in messages %}{{ m['content'] }} and {% endfor %}"
    chatting = ClassifierReward(distilbert(), tokenizer, 1)
    # the template writes [CLS] itself
    assert chatting([CHATS[1]], [completion]) == plain.score(["the film and the plot was very and good and"])
    assert chatting(["the film "], ["was good"]) == plain.score(["the film was good"])


def test_the_likelihood_of_a_conversation_is_that_of_its_answer(tmp_path):
    policy = chat_policy(tmp_path)
    tokenizer = policy.processing_class
    chats = [[*chat, {"role": "assistant", "content": "the film was very good"}] for chat in CHATS]
    table = held_out_log_likelihoods(policy, chats, length=4, batch_size=3)
    for chat, row in zip(chats, table.itertuples(), strict=True):
        start = tokenizer.apply_chat_template(chat[:-1], add_generation_prompt=True)["input_ids"]
        answer = tokenizer.convert_tokens_to_ids(["the", "film", "was", "very"])
        logits = policy.model(torch.tensor([start + answer])).logits[0, len(start) - 1 : -1].log_softmax(-1)
        assert row.tokens == 4
        assert row.log_likelihood == pytest.approx(logits[range(4), answer].sum().item(), abs=1e-4)
    assert table["text"][1].startswith("system: the film\nuser: the plot was very\nassistant: the film")


def test_sft_learns_the_answers_alone_and_says_if_none_is_left(tmp_path):
    policy = chat_policy(tmp_path)
    tokenizer, losses = policy.processing_class, []
    chats = [[*chat, {"role": "assistant", "content": "the film was very good"}] for chat in CHATS]
    for chat in chats:
        start = tokenizer.apply_chat_template(chat[:-1], add_generation_prompt=True)["input_ids"]
        answer = tokenizer.convert_tokens_to_ids(["the", "film", "was", "very", "good", "[END]"])
        logits = policy.model(torch.tensor([start + answer])).logits[0, len(start) - 1 : -1]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(answer)).item())
    settings = {"learning_rate": 1e-3, "batch_size": 4, "epochs": 1, "max_length": 30}
    log = train_sft(policy, chats, SFTSettings(**settings), seed=1)
    assert log[0]["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    with pytest.raises(UserError, match="sft.max_length = 12: 2 conversations have so many tokens before"):
        train_sft(policy, chats, SFTSettings(**settings | {"max_length": 12}), seed=1)


def write_chats(path, field="messages"):
    """A file of conversations with labels, one of which is long and one of which has no answer."""
    rows = []
    for i in range(80):
        words = [*WORDS[i % 8 :], *WORDS[: i % 8], *["very"] * i]
        chat = [{"role": "user", "content": f"the <b> film is {' '.join(words)}"}]
        answer = [{"role": "assistant", "content": "good plot" if i % 2 else "bad plot"}]
        parts = {"messages": chat + answer} if field == "messages" else {"prompt": chat, "completion": answer}
        rows.append(parts | {"label": i % 2})
    rows[2][field] = [ASK]
    rows[2].pop("completion", None)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("field", ["messages", "prompt"])
def test_files_of_conversations_become_prompts_and_texts_and_long_prompts_are_left_out(field, tmp_path):
    policy, path = chat_policy(tmp_path / "model"), write_chats(tmp_path / "chats.jsonl", field)
    fields = {"name": "imdb-gen", "source": "files", "train_prompts": 100, "test_prompts": 100, "tail_threshold": 0}
    fields |= {"minimum_characters": 200, "train_file": str(path), "test_file": str(path)}
    task = load_task(TaskSettings(**fields, prompt_length=40), policy.processing_class)
    assert "task.train_file: 57 of 80 conversations were left out" in task.notes[0] and len(task.train) == 23
    assert [ASK] in [json.loads(row) for row in task.train["messages"]]
    assert task.train["prompt"].str.startswith("user: the").all() and len(task.train_texts) == 22
    chosen = task.positive_texts("train", 1)
    assert len(chosen) == 11 and all(chat[-1] == {"role": "assistant", "content": "good plot"} for chat in chosen)
    with pytest.raises(UserError, match=r"80 of 80 conversations have more than task.prompt_length = 5 .*shortest"):
        load_task(TaskSettings(**fields, prompt_length=5), policy.processing_class)
    policy.processing_class.chat_template = None
    with pytest.raises(UserError, match="no chat template: set its `chat_template`"):
        load_task(TaskSettings(**fields, prompt_length=40), policy.processing_class)


@pytest.mark.parametrize(
    "row, message",
    [
        ({"messages": [ANSWER]}, "row 1 has no turn before the assistant's"),
        ({"messages": []}, "row 1 holds no message"),
        ({"messages": "hello"}, "row 1 has `messages` 'hello'; give a list of messages"),
        ({"messages": [{"role": "user", "content": None}]}, "give messages like"),
        ({"prompt": [ASK], "completion": "good"}, "row 1 has `completion` 'good'; give a list of messages"),
    ],
)
def test_damaged_conversations_are_named(row, message, tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=message):
        read_texts(path, "task.train_file")


def test_a_trainer_names_conversations_that_its_model_cannot_read(tmp_path):
    policy = chat_policy(tmp_path)
    with pytest.raises(UserError, match="the prompt of row 1 holds 'hello'; give messages like"):
        ppo_trainer(policy, train_dataset=pd.DataFrame({"prompt": [["hello"]]}))
    policy.processing_class.chat_template = "{{ raise_exception('no system turn') }}"
    with pytest.raises(UserError, match="does not take the conversation 'user: the film is': no system turn"):
        ppo_trainer(policy, train_dataset=Dataset.from_dict({"prompt": CHATS}))


def test_a_run_on_conversations(checkout):
    chat_policy(checkout / "model")
    distilbert().save_pretrained(checkout / "reward")
    classifier_tokenizer().save_pretrained(checkout / "reward")
    file = str(write_chats(checkout / "chats.jsonl"))
    changes = {"task.source": "files", "task.train_file": file, "task.test_file": file, "task.prompt_length": 40}
    changes |= {"policy.model": str(checkout / "model"), "reward.model": str(checkout / "reward"), "reward.label": 1}
    changes |= {"sampling.minimum_completion_length": 0, "sampling.completion_length": 6}
    experiment = Experiment.open("pocket-imdb", "chats", overrides=SMALL | changes)
    notes = experiment.prepare_data()
    assert any("57 of 80 conversations were left out" in note for note in notes)
    experiment.train_sft()
    experiment.train("ra_rlhf")
    experiment.train("cvar_grpo")
    for method in ("sft", "ra_rlhf", "best_of_n", "cvar_grpo"):
        episodes = experiment.evaluate(method)
        assert episodes["prompt"].str.startswith("user: the").all() and len(episodes) == 23
    tables = experiment.tables()
    assert experiment.report() is not None and len(experiment.tail_clusters("sft")) == 2
    card = model_card(experiment, "ra_rlhf", "mine").text
    assert 'messages = [{"role": "user", "content": "this drama' in card and "prompt = prompt[:, 1 :]" in card
    html = tail_prompts_html(tail_prompts_table(tables.episodes, n=23))
    assert "user: the &lt;b&gt; film" in html and "<b> film" not in html
