"""A folder that holds a LoRA adapter and not its model, as peft and TRL save it."""

import json
import warnings
from pathlib import Path

import peft
from safetensors import SafetensorError
from transformers import PreTrainedModel

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
            return peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except (OSError, RuntimeError, ValueError, UserWarning, SafetensorError) as error:
        raise UserError(
            f"model = {str(folder)!r}: the adapter does not fit the model that it names: {first_line(error)}"
        ) from error
