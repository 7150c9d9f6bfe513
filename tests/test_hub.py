"""A model's name resolves to a folder, or to a clear error at once."""

import json
import time

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

from rarlhf_nb import hub
from rarlhf_nb.errors import UserError
from rarlhf_nb.hub import resolve_model


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    """A hub cache with nothing in it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_folder_is_returned_unchanged_if_it_holds_a_whole_model(tmp_path):
    with pytest.raises(UserError, match="no config.json"):
        resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="pickled ones are not read"):
        resolve_model(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert resolve_model(str(tmp_path)) == str(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="holds an adapter.*merge"):
        resolve_model(str(tmp_path))


class Silent:
    """A network that answers nothing for a long time."""

    def head(self, *_, **__):
        time.sleep(5)


@pytest.mark.parametrize("offline", [True, False])
def test_a_network_that_is_not_there_is_not_waited_for(offline, monkeypatch, empty_cache):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    if not offline:
        monkeypatch.setattr(hub, "CONNECT_SECONDS", 0.1)
        monkeypatch.setattr(hub, "get_session", Silent)
    start = time.perf_counter()
    with pytest.raises(UserError, match="'someone/model'.*no network.*pocket-imdb.*pocket-jigsaw"):
        resolve_model("someone/model")
    assert time.perf_counter() - start < 1


def test_a_cached_snapshot_needs_no_network(monkeypatch, empty_cache):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = empty_cache / "models--someone--model"
    snapshot = repository / "snapshots" / "0123456789"
    for folder in (snapshot, repository / "refs", repository / "trees"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123456789")
    (snapshot / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no network"):  # the weights are not there yet
        resolve_model("someone/model")
    (snapshot / "model.safetensors").write_bytes(b"")
    # what the repository holds beside it, in the hub's own list, was never asked for
    names = ["config.json", "model.safetensors", "pytorch_model.bin", "README.md"]
    listing = {"format_version": 1, "files": {name: {"size": 1, "blob_id": "0" * 40} for name in names}}
    (repository / "trees" / "0123456789.json").write_text(json.dumps(listing))
    with pytest.raises(IncompleteSnapshotError):
        hub.snapshot_download("someone/model", local_files_only=True)
    assert resolve_model("someone/model") == str(snapshot)


def test_nothing_but_json_text_and_safetensors_is_downloaded(monkeypatch, empty_cache, tmp_path):
    asked = []

    def download(**options):
        if options.get("local_files_only"):
            raise LocalEntryNotFoundError("not here")
        asked.append(options)
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "model.safetensors").write_bytes(b"")
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    monkeypatch.setattr(hub, "hub_answers", lambda: True)
    assert resolve_model("someone/model") == str(tmp_path)
    assert [set(options["allow_patterns"]) for options in asked] == [{"*.json", "*.txt", "*.model", "*.safetensors"}]


@pytest.mark.parametrize("name", ["a/b/c", "./missing/folder", "two words"])
def test_a_malformed_name_is_refused(name, empty_cache):
    with pytest.raises(UserError, match="neither an existing folder nor a hub id"):
        resolve_model(name)
