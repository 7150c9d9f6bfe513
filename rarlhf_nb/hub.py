"""From the name of a model to its local folder; without a network, a clear error within seconds."""

import threading
from pathlib import Path

from huggingface_hub import constants, get_session, is_offline_mode, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from rarlhf_nb.errors import UserError, first_line

PATTERNS = ["*.json", "*.txt", "*.model", "*.safetensors"]  # never pickled weights, never code
CONNECT_SECONDS = 3.0


def resolve_model(name: str) -> str:
    """The local folder of a model, given a folder or a hub id.

    A folder is returned unchanged. A hub id is looked up in the local cache and, if it is not there, downloaded (only
    JSON, tokenizer and safetensors files).

    Raises:
        UserError: a folder or repository without `config.json` and safetensors weights, or with an adapter; a malformed
            id; an unknown or closed repository; no network (raised within about three seconds).
    """
    if Path(name).expanduser().is_dir():
        return _local_folder(Path(name).expanduser())
    try:
        cached = Path(snapshot_download(name, local_files_only=True, allow_patterns=PATTERNS))
        if _is_complete(cached):
            return _without_adapter(cached)
    except HFValidationError as error:
        raise UserError(f"model = {name!r} is neither an existing folder nor a hub id like `gpt2`") from error
    except LocalEntryNotFoundError:
        pass
    require_network(f"model = {name!r}", instead="a local folder")
    return _download(name)


def _local_folder(folder: Path) -> str:
    if not (folder / "config.json").is_file():
        raise UserError(f"model = {str(folder)!r} has no config.json: give a folder written by `save_pretrained`")
    if not _is_complete(folder):
        raise UserError(
            f"model = {str(folder)!r} has no safetensors weights, and pickled ones are not read: load them where you "
            "trust them, and write the model again with `save_pretrained`"
        )
    return _without_adapter(folder)


def _without_adapter(folder: Path) -> str:
    # transformers would load the adapter, pickled or not, on the base model that its config names
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"model = {str(folder)!r} holds an adapter beside the model: merge it with peft's `merge_and_unload`, "
            "and give the folder of the merged model"
        )
    return str(folder)


def _is_complete(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _download(name: str) -> str:
    try:
        folder = Path(snapshot_download(name, allow_patterns=PATTERNS))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise UserError(f"model = {name!r} cannot be downloaded: {first_line(error)}") from error
    if not _is_complete(folder):
        raise UserError(
            f"model = {name!r} has no safetensors weights with a config.json: name another model, "
            "or convert it and give the local folder"
        )
    return _without_adapter(folder)


def require_network(what: str, instead: str) -> None:
    """Raise `UserError` at once if the hub is out of reach for `what`; `instead` names what the user can give."""
    if is_offline_mode() or not hub_answers():
        raise UserError(
            f"{what} is not in the local cache, and there is no network to fetch it with: give {instead}, or use a "
            "profile that needs no network (`pocket-imdb`, `pocket-jigsaw`, `pocket-rtp`)"
        )


def hub_answers() -> bool:
    """Whether the hub answers within `CONNECT_SECONDS`, if need be through the user's proxy."""
    answered = threading.Event()

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=CONNECT_SECONDS)
        except Exception:  # for whatever reason, the hub is out of reach
            return
        answered.set()

    # A silent name server blocks beyond every timeout of the client, so the time limit is enforced here.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(CONNECT_SECONDS)
    return answered.is_set()
