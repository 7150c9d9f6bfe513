"""How the pocket models were made: tokenizer, language model and reward model, trained on the grammar's texts.

`rarlhf pocket build` makes them again. Another kind of processor rounds otherwise, so it makes models that are as good
but not the same to the last digit; that is why they come with the package.
"""

import hashlib
import json
from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import (
    DataCollatorForLanguageModeling,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
)

from rarlhf_nb.data.classifier import quiet_arguments, train_classifier
from rarlhf_nb.data.pocket.grammar import WORLDS, vocabulary, write_texts
from rarlhf_nb.files import checksum
from rarlhf_nb.seeding import seeded, threads

# These numbers determine the models, together with the sources in `fingerprint`.
SETTINGS = {
    "lm": {"layers": 2, "width": 128, "heads": 4, "context": 128, "texts": 10_000, "epochs": 2, "learning_rate": 2e-3},
    "reward": {
        "layers": 2,
        "width": 64,
        "heads": 4,
        "texts": 14_000,
        "held_out": 2_000,
        "epochs": 3,
        "learning_rate": 1.5e-3,
    },
    "seeds": {"lm": 1, "reward": 2, "held_out": 3},
}


def build_models(name: str, folder: Path) -> None:
    """Train the models of the world `name` into the folders `policy` and `reward` of `folder`, in about a minute."""
    lexicon = WORLDS[name]
    texts = [text.text for text in write_texts(lexicon, SETTINGS["lm"]["texts"], SETTINGS["seeds"]["lm"])]
    with threads(2):  # the same models on every machine of a kind
        _train_language_model(texts, _tokenizer(vocabulary(lexicon)), folder / "policy")
        _train_reward_model(name, folder / "reward")
    versions = {module.__name__: module.__version__ for module in (torch, transformers, tokenizers)}
    weights = {file.relative_to(folder).as_posix(): checksum(file) for file in sorted(folder.rglob("*.safetensors"))}
    made_from = {"fingerprint": fingerprint(name), "versions": versions, "weights": weights}
    (folder / "made_from.json").write_text(json.dumps(made_from, indent=2) + "\n")


def fingerprint(name: str) -> str:
    """A hash of what determines the models of a world: this module, the grammar and the settings."""
    sources = [Path(__file__), Path(__file__).with_name("grammar.py")]
    parts = [name, json.dumps(SETTINGS), *(path.read_text() for path in sources)]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:12]


def _tokenizer(words: list[str], classifier: bool = False) -> PreTrainedTokenizerFast:
    """One token per word. The classifier's tokenizer puts [CLS] first, from which DistilBERT reads its answer."""
    ids = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[EOS]", *words])}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "eos_token": "[EOS]"}
    if classifier:
        tokenizer.post_processor = TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", ids["[CLS]"])])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=SETTINGS["lm"]["context"], **special)


def _train_language_model(texts: list[str], tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """A GPT-2 of 0.4 million parameters, by next-word prediction."""
    sizes, seed = SETTINGS["lm"], SETTINGS["seeds"]["lm"]
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=sizes["context"],
        n_embd=sizes["width"],
        n_layer=sizes["layers"],
        n_head=sizes["heads"],
        activation_function="gelu_pytorch_tanh",  # GPT-2's, in one kernel
        resid_pdrop=0.0,  # each text is seen only twice, and dropout costs a quarter of the time
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    examples = [{"input_ids": ids} for ids in tokenizer([f"{text} [EOS]" for text in texts])["input_ids"]]
    with seeded(seed, torch.device("cpu")):
        model = GPT2LMHeadModel(config)
        model.loss_type = "ForCausalLM"  # transformers finds none in this class's name, and would warn
        arguments = quiet_arguments(
            folder,
            per_device_train_batch_size=64,
            num_train_epochs=sizes["epochs"],
            learning_rate=sizes["learning_rate"],
            lr_scheduler_type="cosine",
            warmup_steps=20,
            seed=seed,
        )
        collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
        trainer = Trainer(model, arguments, train_dataset=examples, data_collator=collator)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _train_reward_model(name: str, folder: Path) -> None:
    """A small DistilBERT, trained on labelled texts of all lengths that the language model was not trained on."""
    lexicon, sizes, seeds = WORLDS[name], SETTINGS["reward"], SETTINGS["seeds"]
    tokenizer = _tokenizer(vocabulary(lexicon), classifier=True)
    train, held_out = (
        [(text.text, text.label) for text in write_texts(lexicon, sizes[size], seeds[seed], clauses=(1, 6))]
        for size, seed in (("texts", "reward"), ("held_out", "held_out"))
    )
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=SETTINGS["lm"]["context"],
        dim=sizes["width"],
        hidden_dim=4 * sizes["width"],
        n_layers=sizes["layers"],
        n_heads=sizes["heads"],
        dropout=0.0,
        attention_dropout=0.0,
        seq_classif_dropout=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    with seeded(seeds["reward"], torch.device("cpu")):
        model = DistilBertForSequenceClassification(config)
    train_classifier(
        model,
        tokenizer,
        train,
        held_out,
        folder,
        epochs=sizes["epochs"],
        learning_rate=sizes["learning_rate"],
        batch_size=128,
        seed=seeds["reward"],
    )
