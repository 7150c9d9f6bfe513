"""LoRA adapters: a folder that holds one without its model, as peft and TRL save it, and one on bfloat16 weights.

A young adapter changes a product, or a weight, by less than the distance of two bfloat16 numbers. Both lie on that
grid, so the nearest number to the sum is the old one, and what was learnt is lost. Products are therefore added in
float32 before they are rounded. Merged weights are rounded up or down at random, in proportion: their mean is exact.
"""

import json
import warnings
from pathlib import Path
from types import MethodType
from typing import Any

import peft
import torch
from peft.tuners.lora import Linear, LoraLayer
from safetensors import SafetensorError
from torch import nn
from torch.nn.functional import linear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rarlhf_nb.errors import UserError, first_line
from rarlhf_nb.hub import model_folder, resolve_model, whole_model

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def resolve_adapter(name: str) -> tuple[str, Path | None]:
    """The local folder of a model, and that of its adapter if `name` is an adapter alone, which names its model.

    Raises `UserError` for an adapter that is not LoRA or has no safetensors weights, if its model cannot be found, and
    the errors of `resolve_model`.
    """
    folder = model_folder(name)
    if (folder / "config.json").is_file() or not (folder / CONFIG).is_file():
        return whole_model(name, folder), None
    config = json.loads((folder / CONFIG).read_text())
    what = f"model = {name!r} is an adapter without its model"
    if config.get("peft_type") != "LORA" or not (folder / WEIGHTS).is_file():
        raise UserError(f"{what}, and only LoRA in {WEIGHTS} is read: merge it where you trust it, and give the result")
    base = config.get("base_model_name_or_path")
    if not base:
        raise UserError(f"{what}, and {CONFIG} names none: write the model as `base_model_name_or_path` into it")
    try:
        return resolve_model(base), folder
    except UserError as error:
        raise UserError(f"{what}, which it names in {CONFIG} as `base_model_name_or_path`: {error}") from error


def with_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model with the adapter of `folder` merged in; raises `UserError` for an adapter of another model."""
    try:
        with warnings.catch_warnings():
            # such parts of the adapter would stay untrained
            warnings.filterwarnings("error", message="Found missing adapter keys")
            adapted = peft.PeftModel.from_pretrained(model, str(folder))
    except (OSError, RuntimeError, ValueError, UserWarning, SafetensorError) as error:
        raise UserError(
            f"model = {str(folder)!r}: the adapter does not fit the model that it names: {first_line(error)}"
        ) from error
    return merge(adapted)


def with_fresh_adapter(model: PreTrainedModel, **sizes: Any) -> peft.PeftModel:
    """The model with a new LoRA adapter on its linear layers; `sizes` are arguments of `peft.LoraConfig`.

    Left out, with a warning, are routers and the layers of Mamba blocks, which read the weights of some without calling
    them. Raises `UserError` for a model with the same weights in several layers, such as Zamba's: peft 0.21.2 merges an
    adapter for each of them.
    """
    blocks = [
        name
        for name, module in model.named_modules()
        if (hasattr(module, "A_log") and hasattr(module, "D")) or "Router" in type(module).__name__
    ]
    linear = {name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))}
    places = {id(module.weight): name for name, module in linear.items()}
    for name, module in linear.items():
        if places[id(module.weight)] != name:
            raise UserError(
                f"policy.lora: a model of type {model.config.model_type!r} has the same weights in several places, "
                f"{name} and {places[id(module.weight)]}, and cannot have an adapter; train it without policy.lora."
            )
    left = [name for name in linear if name in blocks or name.rpartition(".")[0] in blocks]
    config = peft.LoraConfig(**sizes, target_modules="all-linear", exclude_modules=left or None, task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        # peft uses a name that transformers is about to drop
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        adapted = peft.get_peft_model(model, config)
    add_in_float32(adapted)
    if left:
        kinds = sorted({name.rpartition(".")[2] for name in left})
        warnings.warn(
            f"policy.lora: the adapter leaves out {len(left)} of {len(linear)} linear layers, those of Mamba blocks "
            f"and routers: {', '.join(kinds)}",
            stacklevel=3,
        )
    return adapted


@torch.no_grad()
def merge(model: peft.PeftModel) -> PreTrainedModel:
    """The model with its adapter merged in, in place; sums with bfloat16 weights are rounded as `rounded` does."""
    half = {
        name: layer.get_base_layer().to(torch.float32)
        for name, layer in model.get_base_model().named_modules()
        if isinstance(layer, LoraLayer) and _is_half(layer.get_base_layer())
    }
    base, generator = model.merge_and_unload(), torch.Generator().manual_seed(0)
    for name in half:
        for parameter in base.get_submodule(name).parameters(recurse=False):
            parameter.data = rounded(parameter.data, generator)
    return base


def _is_half(layer: nn.Module) -> bool:
    """Whether the weights are bfloat16; experts hold theirs in several parameters of one module."""
    return any(parameter.dtype == torch.bfloat16 for parameter in layer.parameters(recurse=False))


def rounded(exact: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """float32 numbers in bfloat16: one of the two neighbours at random, so that the mean is exact."""
    noise = torch.randint(1 << 16, exact.shape, generator=generator, dtype=torch.int32).to(exact.device)
    # bfloat16 is the upper half of the bits of float32; a number that it holds has no lower ones, and stays
    return ((exact.contiguous().view(torch.int32) + noise) & -(1 << 16)).view(torch.float32).to(torch.bfloat16)


def add_in_float32(model: peft.PeftModel) -> None:
    """Let a fresh adapter on bfloat16 weights add its product before the sum is rounded.

    peft 0.21.2 keeps the adapter in float32 (`autocast_adapter_dtype`), but adds to a product that is already rounded.
    """
    for layer in model.modules():
        if isinstance(layer, Linear) and layer.get_base_layer().weight.dtype == torch.bfloat16:
            layer.forward = MethodType(_forward_in_float32, layer)


def _forward_in_float32(layer: Linear, x: torch.Tensor) -> torch.Tensor:
    base = layer.get_base_layer()
    if layer.disable_adapters or layer.merged or x.dtype != base.weight.dtype:
        return type(layer).forward(layer, x)
    # GPT-2's Conv1D keeps its matrix transposed
    weight = base.weight.T if layer.fan_in_fan_out else base.weight
    with torch.autocast(x.device.type, enabled=False):
        total = _Float32Product.apply(x, weight)
        if base.bias is not None:
            total = total + base.bias
        for name in layer.active_adapters:
            down, up = layer.lora_A[name], layer.lora_B[name]
            total = total + up(down(layer.lora_dropout[name](x.to(down.weight.dtype)))) * layer.scaling[name]
    return total.to(x.dtype)


class _Float32Product(torch.autograd.Function):
    """x W^T of bfloat16 numbers in float32; W is frozen, and no copy of it in float32 is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight)
        if x.is_cuda:  # its kernels add up in float32 anyway; on a CPU torch 2.13 has no `out_dtype`
            product = torch.mm(x.flatten(0, -2), weight.T, out_dtype=torch.float32)
            return product.view(*x.shape[:-1], len(weight))
        return linear(x.float(), weight.float())

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (weight,) = ctx.saved_tensors
        return gradient.to(weight.dtype) @ weight, None
