"""`rarlhf export`: a trained policy as a folder that is ready for the hub, and its upload with the user's own login."""

import shutil
from pathlib import Path

from huggingface_hub import HfApi, get_token, is_offline_mode

from rarlhf_nb.errors import UserError, first_line
from rarlhf_nb.files import build_once
from rarlhf_nb.hub import hub_answers
from rarlhf_nb.lab.artifacts import run_lock
from rarlhf_nb.lab.methods import CONDITIONED, METHODS, MethodKey
from rarlhf_nb.lab.model_card import is_hub_id, model_card
from rarlhf_nb.lab.workspace import Workspace

REFUSED = {
    "base": "it is the profile's own model, which was not trained",
    CONDITIONED: f"it acts for any alpha; export it for one, such as '{CONDITIONED}@0.2'",
    "best_of_n": "it trains nothing; export 'sft', from which it samples",
    "dexperts": "it is the base model steered by two policies, and one folder holds one policy",
}


def export_policy(workspace: Workspace, method: str, folder: Path, name: str | None = None) -> Path:
    """Copy a method's policy, unchanged, into `folder` with a model card and the training log; returns its full path.

    "conditioned@0.2" exports the conditioned policy, fixed at that alpha. The folder appears whole
    or not at all. name: what the card loads, by default the folder's name. Raises `UserError` for a method
    without one policy that the run made, and for a folder that is not empty.
    """
    folder = folder.expanduser().resolve()
    if method in REFUSED:
        raise UserError(f"method = {method!r} has no policy of its own to export: {REFUSED[method]}.")
    policy = workspace.policy_folder(MethodKey.parse(method).policy)
    if MethodKey.parse(method).name not in METHODS:
        raise UserError(
            f"method = {method!r} was not made by this run, which has no card for it: upload {policy} itself."
        )
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"folder = {str(folder)!r} is not empty, and nothing is overwritten: name a new folder.")

    def fill(place: Path) -> None:
        if policy.name == CONDITIONED:
            workspace.policy(method).save(place)
        else:
            for file in filter(Path.is_file, policy.iterdir()):
                shutil.copyfile(file, place / file.name)
        log = workspace.run.path("training", f"{policy.name}.jsonl")
        if log.exists():
            shutil.copyfile(log, place / "training_log.jsonl")
        model_card(workspace, method, name or folder.name).save(place / "README.md")

    try:
        with run_lock(workspace.run.folder):
            if folder.exists():
                folder.rmdir()
            return build_once(folder, fill)
    except OSError as error:
        raise UserError(f"folder = {str(folder)!r} was not written: {error}") from error


def check_push(repo: str) -> None:
    """Raise `UserError` unless `repo` is a name for the hub, the hub answers and the user is logged in."""
    if "/" not in repo or not is_hub_id(repo):
        raise UserError(f"push = {repo!r} is not a repository name: write it as USER/NAME.")
    if is_offline_mode() or not hub_answers():
        raise UserError(
            f"push = {repo!r}: the hub does not answer; export without --push, and later upload the folder with "
            f"`hf upload {repo} FOLDER`."
        )
    if get_token() is None:
        raise UserError(f"push = {repo!r}: you are not logged in to the hub; run `hf auth login` first.")


def push_folder(folder: Path, repo: str) -> str:
    """Upload an exported folder; a repository that is new will be private. Returns its address.

    Raises `UserError` if the hub refuses it.
    """
    api = HfApi()
    try:
        address = api.create_repo(repo, private=True, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder)
    except Exception as error:  # of the client, its transport or the library that uploads large files
        raise UserError(
            f"push = {repo!r} failed: {first_line(error)}. The folder is written; `hf auth login` renews a login, and "
            f"`hf upload {repo} {folder}` tries again."
        ) from error
    return str(address)
