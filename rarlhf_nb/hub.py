"""From the name of a model or data set to its local folder; without a network, a clear error within seconds."""

import threading
from contextlib import suppress
from pathlib import Path

from huggingface_hub import constants, get_session, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from rarlhf_nb.errors import UserError, first_line

WEIGHTS = "*.safetensors"  # never pickled weights, and never code
CONNECT_SECONDS = 3.0


def resolve_model(name: str) -> str:
    """The local folder of a model, given a folder or a hub id. No code and no pickle is fetched from the hub.

    Raises:
        UserError: a folder or repository without `config.json` and safetensors weights, or with an adapter; and the
            errors of `snapshot`.
    """
    return whole_model(name, model_folder(name))


def whole_model(name: str, folder: Path) -> str:
    """The folder of the model `name`, checked; raises the errors of `resolve_model` about what it holds."""
    what = f"model = {name!r}"
    if not (folder / "config.json").is_file():
        raise UserError(f"{what} has no config.json: give a folder written by `save_pretrained`")
    if not any(folder.glob(WEIGHTS)):
        raise UserError(
            f"{what} has no safetensors weights, and pickled ones are not read: load them where you trust them, and "
            "write the model again with `save_pretrained`"
        )
    # transformers would load the adapter, pickled or not, on the base model that its config names
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"{what} holds an adapter beside the model: merge it with peft's `merge_and_unload`, and give the folder "
            "of the merged model"
        )
    return str(folder)


def model_folder(name: str) -> Path:
    """The local folder of a model, whatever is in it, given a folder or a hub id; raises the errors of `snapshot`."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    return snapshot(name, f"model = {name!r}", "model", [WEIGHTS, "*.json", "*.txt", "*.model"], needed=[WEIGHTS])


def snapshot(
    name: str, what: str, kind: str, patterns: list[str], needed: list[str], revision: str | None = None
) -> Path:
    """The local folder of the hub repository `name`, from the cache or downloaded: its files that match `patterns`.

    kind: "model" or "dataset". what: the name as the user gave it, for the errors. needed: patterns. If no cached file
    matches one of them, the repository was cached in part or for another purpose, and is downloaded.

    Raises:
        UserError: a malformed id; an unknown or closed repository; no network (raised within about three seconds).
    """
    request = {"repo_id": name, "repo_type": kind, "revision": revision, "allow_patterns": patterns}
    local = "folder" if kind == "model" else "folder or file"
    try:
        folder = Path(snapshot_download(**request, local_files_only=True))
        if any(path for pattern in needed for path in folder.rglob(pattern)):
            return folder
    except HFValidationError:
        raise UserError(f"{what} is neither an existing {local} nor a hub id like `stanfordnlp/imdb`") from None
    except LocalEntryNotFoundError:
        pass
    if not hub_answers():
        raise UserError(
            f"{what} is not in the local cache, and there is no network to fetch it with: give a local {local}, or use "
            "a profile that needs no network (`pocket-imdb`, `pocket-jigsaw`, `pocket-rtp`)"
        )
    try:
        return Path(snapshot_download(**request))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise UserError(f"{what} cannot be downloaded: {first_line(error)}") from error


def hub_answers() -> bool:
    """Whether the hub answers within `CONNECT_SECONDS`, if need be through the user's proxy; not in offline mode."""
    answers = []

    def ask() -> None:
        with suppress(Exception):  # for whatever reason, the hub is out of reach
            answers.append(get_session().head(constants.ENDPOINT, timeout=CONNECT_SECONDS))

    # A silent name server blocks beyond every timeout of the client, so the time limit is enforced here.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(CONNECT_SECONDS)
    return bool(answers)
