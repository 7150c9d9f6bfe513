"""Supervised fine-tuning on positive or non-toxic texts: the start and the reference of every RL method."""

import tempfile
import warnings

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from rarlhf_nb.checkpoint import Checkpoints
from rarlhf_nb.conversations import Prompt, is_conversation
from rarlhf_nb.errors import UserError
from rarlhf_nb.policy import ActorCritic, base_model
from rarlhf_nb.resumable import QUIET, ResumableTrainer
from rarlhf_nb.seeding import library_seed, seeded
from rarlhf_nb.settings import SFTSettings
from rarlhf_nb.trl_head import check_trl_head

ROUTING = ("output_router_logits", "router_aux_loss_coef")  # in the config of a mixture of experts


def train_sft(
    policy: ActorCritic,
    texts: list[Prompt],
    settings: SFTSettings,
    seed: int,
    mixed_precision: str = "no",
    checkpoints: Checkpoints | None = None,
) -> list[dict[str, float]]:
    """Fine-tune the policy in place on `texts` with TRL's `SFTTrainer`; returns its log (step, loss, ...).

    With `checkpoints` it saves some on the way and goes on from the last one; the result is the same, number for
    number, as without an interruption. Ctrl-C saves a checkpoint after the step under way.

    A conversation ends with an answer; it is read through the chat template, and the answer alone is learnt.

    With packing, tokens attend to earlier texts of their block, as in pre-training. A mixture of experts is trained
    with its load-balancing loss if TRL can compute it. Raises `UserError` if the checkpoints belong to a training with
    other settings, if `max_length` tokens leave nothing of a conversation's answer, and the error of `check_trl_head`.
    """
    config, causal_lm = policy.model.config.get_text_config(), base_model(policy.model)
    # transformers 5.23 knows by the name of a class that its first label is never predicted; GPT2LMHeadModel and others
    # have another name, and their loss was divided by one token too many for each text
    causal_lm.loss_type = causal_lm.loss_type or "ForCausalLM"
    routing = {name: getattr(config, name) for name in ROUTING if hasattr(config, name)}
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
            packing=settings.packing,
            packing_strategy="wrapped",
            max_grad_norm=1.0,
            bf16=mixed_precision == "bf16",
            use_cpu=policy.device.type == "cpu",
            seed=library_seed(seed),
            logging_steps=1,
            gradient_checkpointing=False,
            # TRL 1.16 balances the load over `num_experts`, which Granite-MoE and Phi-MoE call otherwise
            router_aux_loss_coef=0.0 if routing and not hasattr(config, "num_experts") else None,
            **QUIET,
        )
        trainer = _SFTTrainer(
            model=policy.model,
            args=args,
            train_dataset=Dataset.from_dict(_columns(texts[: settings.texts])),
            processing_class=policy.processing_class,
        )
        check_trl_head(causal_lm)
        # TRL leaves out what has no token to learn after `max_length` of them
        if not settings.packing and (lost := len(texts[: settings.texts]) - len(trainer.train_dataset)):
            raise UserError(
                f"sft.max_length = {settings.max_length}: {lost} conversations have so many tokens before their answer;"
                " raise it."
            )
        determined_by = {"sft": settings.model_dump(mode="json"), "seed": seed, "mixed_precision": mixed_precision}
        trainer.train_resumably(checkpoints, determined_by)
    for name, value in routing.items():  # TRL leaves them as it needs them
        setattr(config, name, value)
    policy.eval()
    return [row for row in trainer.state.log_history if "loss" in row]


def _columns(texts: list[Prompt]) -> dict[str, list]:
    """The texts as columns that TRL's `SFTTrainer` reads."""
    if not any(map(is_conversation, texts)):
        return {"text": texts}
    return {"prompt": [text[:-1] for text in texts], "completion": [text[-1:] for text in texts]}


class _SFTTrainer(ResumableTrainer, SFTTrainer):
    """TRL's `SFTTrainer` with exact resume."""

    title = "SFT"
    tokens_before = 0  # those before an interruption, which TRL does not count

    def resumed(self) -> None:
        self.tokens_before = self.state.log_history[-1]["num_tokens"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        row = self.state.log_history[-1]
        if "num_tokens" in row:
            row["num_tokens"] += self.tokens_before
