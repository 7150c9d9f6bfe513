"""Supervised fine-tuning on positive or non-toxic texts: the start and the reference of every RL method."""

import tempfile
import warnings
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from rarlhf_nb.checkpoint import Checkpoints
from rarlhf_nb.errors import UserError
from rarlhf_nb.policy import ActorCritic
from rarlhf_nb.resumable import ResumableTrainer
from rarlhf_nb.seeding import seeded
from rarlhf_nb.settings import SFTSettings


def train_sft(
    policy: ActorCritic,
    texts: list[str],
    settings: SFTSettings,
    seed: int,
    mixed_precision: str = "no",
    checkpoints: Checkpoints | None = None,
) -> list[dict[str, float]]:
    """Fine-tune the policy in place on `texts` with TRL's `SFTTrainer`; returns its log (step, loss, ...).

    With `checkpoints` it saves some on the way and goes on from the last one; the result is the same, number for
    number, as without an interruption. Ctrl-C saves a checkpoint after the step under way.

    Raises `UserError` where packing is on and the texts do not fill one block, and where the checkpoints belong to a
    training with other settings.
    """
    with tempfile.TemporaryDirectory() as folder, seeded(seed, policy.device), warnings.catch_warnings():
        # TRL sets this argument under a name that transformers is about to drop
        warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated")
        args = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=settings.batch_size,
            gradient_accumulation_steps=settings.gradient_accumulation_steps,
            learning_rate=settings.learning_rate,
            num_train_epochs=settings.epochs,
            max_steps=settings.max_steps or -1,
            max_length=settings.max_length,
            max_grad_norm=1.0,
            bf16=mixed_precision == "bf16",
            use_cpu=policy.device.type == "cpu",
            seed=seed,
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            gradient_checkpointing=False,
        )
        trainer = _SFTTrainer(
            model=policy.model,
            args=args,
            train_dataset=_training_set(policy.processing_class, texts[: settings.texts], settings),
            processing_class=policy.processing_class,
        )
        determined_by = {"sft": settings.model_dump(mode="json"), "seed": seed, "mixed_precision": mixed_precision}
        trainer.train_resumably(checkpoints, determined_by)
    policy.eval()
    return [row for row in trainer.state.log_history if "loss" in row]


class _SFTTrainer(ResumableTrainer, SFTTrainer):
    """TRL's `SFTTrainer` with exact resume."""

    title = "SFT"

    def own_state(self) -> dict[str, Any]:
        return {"tokens": self._total_train_tokens}  # TRL logs them as num_tokens

    def load_own_state(self, own: dict[str, Any]) -> None:
        self._total_train_tokens = own["tokens"]


def _training_set(tokenizer: PreTrainedTokenizerBase, texts: list[str], settings: SFTSettings) -> Dataset:
    # TRL itself truncates texts and appends EOS. Its packing either needs flash attention to keep texts apart or leaves
    # a short block for every thousand texts; the blocks of the DExperts authors do neither.
    if not settings.packing:
        return Dataset.from_dict({"text": texts})
    return Dataset.from_dict({"input_ids": packed_blocks(tokenizer, texts, settings.max_length)})


def packed_blocks(tokenizer: PreTrainedTokenizerBase, texts: list[str], length: int) -> list[list[int]]:
    """The tokens of all texts, each followed by EOS, cut into blocks of exactly `length` tokens; the rest is dropped.

    Tokens attend to earlier texts of their block, as in pre-training. Raises `UserError` where the texts do not fill
    one block.
    """
    texts_ids = tokenizer(texts, verbose=False)["input_ids"]  # no warning of texts beyond the context: they are cut
    stream = [token for ids in texts_ids for token in [*ids, tokenizer.eos_token_id]]
    if len(stream) < length:
        raise UserError(
            f"sft.max_length = {length}, but all {len(texts)} texts together have {len(stream)} tokens, too few for "
            "one packed block: lower it, give more texts or switch sft.packing off"
        )
    return [stream[at : at + length] for at in range(0, len(stream) - length + 1, length)]
