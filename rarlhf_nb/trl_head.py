"""Whether TRL trains a model on the model's own predictions."""

import torch
from transformers import PreTrainedModel

from rarlhf_nb.errors import UserError
from rarlhf_nb.sampling import token_log_probs

CLOSE, CLOSE_IN_HALF = 1e-3, 0.2  # nats


@torch.no_grad()
def check_trl_head(model: PreTrainedModel, temperature: float = 1.0) -> None:
    """Raise `UserError` unless the log-probabilities of TRL's fused head are the model's own.

    TRL 1.16 replaces the last steps of a model by one product of the trunk's last hidden state and the output
    embedding, with the scales and caps that it knows. BERT, for one, has a layer between the two.
    """
    ids, training = torch.arange(8, device=model.device).unsqueeze(0), model.training
    ids = ids % model.get_input_embeddings().num_embeddings
    model.eval()
    try:
        fused = model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs
        own = token_log_probs(model(input_ids=ids).logits[:, :-1].float() / temperature, ids[:, 1:])
        wrong = (fused - own).abs().max().item()
    except (AttributeError, RuntimeError):  # TRL does not find the trunk, or its states have another size
        wrong = float("nan")
    model.train(training)
    if not wrong < (CLOSE if model.dtype == torch.float32 and model.device.type == "cpu" else CLOSE_IN_HALF):
        raise UserError(
            f"a model of type {model.config.model_type!r} ({type(model).__name__}) cannot be trained by TRL: its fused "
            f"head gives other log-probabilities than the model itself (off by {wrong:.2g}); train it with PPO alone."
        )
