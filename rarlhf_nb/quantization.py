"""A frozen base of 8 or 4 bits under a LoRA adapter, by bitsandbytes: LLM.int8, or QLoRA's double-quantized NF4.

The network with its adapter off, which is the reference, is the quantized base. A policy is saved as plain weights:
those of the base, no longer quantized, plus the adapter.
"""

import copy
from importlib.util import find_spec
from typing import Literal

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rarlhf_nb.adapter import merge, rounded
from rarlhf_nb.errors import UserError

Quantization = Literal["8bit", "4bit"]


def check_bitsandbytes(quantization: Quantization | None) -> None:
    """Raise `UserError` if weights of fewer bits are asked for and bitsandbytes is not installed."""
    if quantization and find_spec("bitsandbytes") is None:
        raise UserError(
            f"policy.quantization = {quantization!r} needs the package bitsandbytes: pip install bitsandbytes, or set "
            "policy.quantization to null."
        )


def bitsandbytes_config(quantization: Quantization, dtype: torch.dtype) -> BitsAndBytesConfig:
    """The quantization config for `from_pretrained`; `dtype` is the compute type of 4-bit products.

    Raises `UserError` if bitsandbytes is not installed.
    """
    check_bitsandbytes(quantization)
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def prepare_quantized(model: PreTrainedModel) -> None:
    """Make sure that a quantized model can be trained and saved; raises `UserError` if it cannot."""
    for module in model.modules():
        if getattr(module, "source_cls", None) is Conv1D:
            raise UserError(
                f"policy.quantization: {type(model).__name__} keeps its matrices transposed and could not be saved; "
                "set policy.quantization to null."
            )
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # on such a CPU, bitsandbytes packs 4-bit weights at the first pass, and nothing can read them any more
            module.support_avx512bf16_for_cpu = False


@torch.no_grad()
def merged(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """A copy of a peft model with its adapter merged in, as plain weights; any other model itself."""
    if not isinstance(model, PeftModel):
        return model
    model = copy.deepcopy(model)
    if getattr(model.get_base_model(), "hf_quantizer", None) is None:
        return merge(model)
    # `merge_and_unload` would round the sum to the base's few bits
    layers = model.get_base_model().named_modules()
    changes = {name: layer.get_delta_weight("default") for name, layer in layers if isinstance(layer, LoraLayer)}
    base = model.unload()
    base.dequantize()
    generator = torch.Generator().manual_seed(0)
    for name, change in changes.items():
        weight = base.get_submodule(name).weight
        total = weight.float() + change
        weight.copy_(rounded(total, generator) if weight.dtype == torch.bfloat16 else total)
    return base
