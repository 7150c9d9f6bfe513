"""How one policy is told which tail share to act for: a learnt embedding of alpha.

e(alpha) = -3 ln(alpha) w is added to the input embedding of every token that the policy reads, of the prompt and of the
completion, as BERT does with its segments. This form was chosen over a token before the prompt because two things are
exact in it. w starts at 0 and takes no position, so the policy starts as the SFT policy at every alpha. And for a fixed
alpha, e is a constant that can be added to the rows of the embedding matrix, after which the policy is an ordinary
causal LM. e(1) = 0: at alpha = 1 the policy is the network without the embedding.
"""

import copy
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from rarlhf_nb.errors import UserError
from rarlhf_nb.risk import check_alpha

RISK_EMBEDDING = "risk_embedding.safetensors"
FORMAT = 1  # of the folder; a change that this code could not read would get the next number
FORM = "log_alpha"  # e(alpha) = -SCALE ln(alpha) w
SCALE = 3.0  # Adam's step does not depend on the scale, so e moves three times as far; chosen on training prompts
ROUNDING = 1e-6  # of an alpha in float32, relative
KEY, SUFFIX = "risk_embedding", "-conditioned-on-alpha"  # in config.json, and after its model_type


class RiskEmbedding(nn.Module):
    """The embedding of alpha. hidden_size: H, that of the input. alpha_min: the smallest alpha of the training."""

    def __init__(self, hidden_size: int, alpha_min: float) -> None:
        super().__init__()
        self.alpha_min = check_alpha(alpha_min)
        self.weight = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, alpha: torch.Tensor) -> torch.Tensor:
        """e(alpha): (B,) -> (B, H)."""
        return -SCALE * alpha.to(self.weight).log().unsqueeze(-1) * self.weight

    def episode_alphas(self, alpha: float | torch.Tensor | None, episodes: int) -> torch.Tensor:
        """The alpha of each episode: (B,), from one for each or one for all.

        Raises `UserError` unless all lie in (0, 1], and warns below the training's alpha_min.
        """
        if alpha is None:
            raise UserError(
                f"alpha is missing: this policy acts for any tail share from {self.alpha_min:g} to 1; name one, as in "
                "sample(..., alpha=0.2), or fix it with policy.at(0.2)."
            )
        alphas = torch.as_tensor(alpha, dtype=torch.float32, device=self.weight.device).expand(episodes)
        for end in {alphas.min().item(), alphas.max().item()} if isinstance(alpha, torch.Tensor) else [alpha]:
            if check_alpha(end) < self.alpha_min * (1 - ROUNDING):
                warnings.warn(
                    f"alpha = {end:g} is below alpha_min = {self.alpha_min:g}, the smallest that this policy was "
                    "trained for: it extrapolates.",
                    stacklevel=3,
                )
        return alphas

    @contextmanager
    def read_by(self, model: PreTrainedModel, alpha: torch.Tensor) -> Iterator[None]:
        """A block in which a model reads e(alpha), alpha (B,), besides the embedding of every token.

        It is added to what the embedding layer gives. `inputs_embeds` would not do: in transformers 5.23, Falcon-H1
        multiplies the embeddings of `input_ids` alone, and Gemma 4 looks the ids up again in later layers.
        """
        added = self(alpha).unsqueeze(1)
        layer = model.get_input_embeddings()
        hook = layer.register_forward_hook(lambda _layer, _inputs, output: output + added.to(output.dtype))
        try:
            yield
        finally:
            hook.remove()

    @torch.no_grad()
    def add_to(self, model: PreTrainedModel, alpha: torch.Tensor) -> None:
        """Add e(alpha), alpha (1,), to the rows of a model's embedding matrix, first parting it from the output's.

        All that is tied is parted: in transformers 5.23 a config without `tie_word_embeddings` ties nothing else again,
        such as Zamba's shared blocks. Some layers scale the rows that they look up, as Gemma's do; e(alpha) is what
        they must give besides.
        """
        layer, seen = model.get_input_embeddings(), set()
        for name, parameter in [*model.named_parameters(remove_duplicate=False)]:
            if parameter in seen:
                module, _, own = name.rpartition(".")
                setattr(model.get_submodule(module), own, copy.deepcopy(parameter))
            seen.add(parameter)
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False
        token = layer.weight.norm(dim=1).argmax()
        row, found = layer.weight[token].double(), layer(token.view(1, 1)).double().flatten()
        scale = (found @ row) / (row @ row)
        layer.weight += (self(alpha) / scale).to(layer.weight.dtype)

    def save(self, folder: Path) -> None:
        """Write the embedding beside a model that was saved, and mark its config.json, so that nothing else loads it.

        Without alpha, the model alone would be another policy. So the config gets a `model_type` that only
        `load_conditioned` knows, and the embedding's form, alpha_min and format.
        """
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config["model_type"] += SUFFIX
        config[KEY] = {"format": FORMAT, "form": FORM, "alpha_min": self.alpha_min}
        path.write_text(json.dumps(config, indent=2) + "\n")
        save_file(self.state_dict(), folder / RISK_EMBEDDING)


def load_conditioned(folder: Path) -> tuple[PreTrainedConfig | None, RiskEmbedding | None]:
    """The config of a conditioned policy's causal LM, and its risk embedding; None for any other folder.

    Raises `UserError` for a risk embedding that is damaged, or that another version of the package wrote.
    """
    # transformers' own reader: it writes infinite numbers, which some hybrids' configs hold, in a form of its own
    config, _ = PreTrainedConfig.get_config_dict(folder)
    risk = config.pop(KEY, None)
    if risk is None:
        return None, None
    if (risk.get("format"), risk.get("form")) != (FORMAT, FORM):
        raise UserError(
            f"policy.model = {str(folder)!r} has a risk embedding of format {risk.get('format')} ({risk.get('form')}), "
            f"and this version of the package reads format {FORMAT} ({FORM}): update the package."
        )
    try:
        state = load_file(folder / RISK_EMBEDDING)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"policy.model = {str(folder)!r} has no readable {RISK_EMBEDDING}, without which it cannot act for any "
            "alpha: copy the whole folder again."
        ) from error
    embedding = RiskEmbedding(len(state["weight"]), risk["alpha_min"])
    embedding.load_state_dict(state)
    return AutoConfig.for_model(config.pop("model_type").removesuffix(SUFFIX), **config), embedding
