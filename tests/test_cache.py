"""A folder enters the cache whole or not at all."""

from pathlib import Path

import pytest

from rarlhf_nb.files import build_once, cache_folder, written_whole


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("RARLHF_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("RARLHF_CACHE")
    assert cache_folder().name == "rarlhf_nb"


def test_a_folder_is_built_once(tmp_path):
    built: list[Path] = []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "weights").write_text("all")

    for _ in range(2):
        folder = build_once(tmp_path / "cache" / "model-1f", build)
        assert (folder / "weights").read_text() == "all"
    assert len(built) == 1
    assert [path.name for path in folder.parent.iterdir()] == ["model-1f"]


@pytest.mark.parametrize("failure", [RuntimeError, OSError, KeyboardInterrupt])
def test_a_half_built_folder_is_never_used(tmp_path, failure):
    def half(folder: Path) -> None:
        (folder / "weights").write_text("ha")
        raise failure("stopped")

    with pytest.raises(failure):
        build_once(tmp_path / "model", half)
    assert list(tmp_path.iterdir()) == []
    build_once(tmp_path / "model", lambda folder: (folder / "weights").write_text("all"))
    assert (tmp_path / "model" / "weights").read_text() == "all"


def test_the_first_process_to_finish_wins(tmp_path):
    def late(folder: Path) -> None:
        (folder / "weights").write_text("late")
        build_once(tmp_path / "model", lambda other: (other / "weights").write_text("first"))

    assert (build_once(tmp_path / "model", late) / "weights").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_written_whole_takes_the_place_of_what_was_there_or_leaves_it(kind, tmp_path):
    target = tmp_path / "below" / "target"

    def write(content: str, failure: type | None = None) -> None:
        with written_whole(target) as new:
            if kind == "folder":
                new.mkdir()
                (new / content).touch()
            else:
                new.write_text(content)
            if failure:
                raise failure

    def found() -> str:
        return target.read_text() if kind == "file" else ",".join(path.name for path in target.iterdir())

    write("one")
    assert found() == "one"
    for failure in (OSError, KeyboardInterrupt):
        with pytest.raises(failure):
            write("half", failure)
        assert found() == "one"
    write("two")
    assert found() == "two"
    assert [path.name for path in target.parent.iterdir()] == ["target"]
