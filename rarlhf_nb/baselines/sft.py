"""Supervised fine-tuning on positive / non-toxic texts: the start and the reference of every RL method."""

import tempfile
import warnings

from datasets import Dataset
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from rarlhf_nb.policy import ActorCritic, seeded
from rarlhf_nb.profiles import SFTSettings


def train_sft(
    policy: ActorCritic, texts: list[str], settings: SFTSettings, seed: int, mixed_precision: str = "no"
) -> list[dict[str, float]]:
    """Fine-tune the policy in place on `texts` with TRL's `SFTTrainer`; returns its log (step, loss, ...)."""
    with tempfile.TemporaryDirectory() as folder, seeded(seed, policy.device), warnings.catch_warnings():
        # TRL sets this argument itself, under the name that transformers is about to drop
        warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated")
        args = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            num_train_epochs=settings.epochs,
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
        trainer = SFTTrainer(
            model=policy.model,
            args=args,
            train_dataset=Dataset.from_dict({"text": texts[: settings.texts]}),
            processing_class=policy.processing_class,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    policy.eval()
    return [row for row in trainer.state.log_history if "loss" in row]
