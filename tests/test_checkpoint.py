"""A checkpoint is used if it is whole, and the last two are kept."""

import random

import pytest
import torch

from rarlhf_nb.checkpoint import Checkpoint, Checkpoints


def names(checkpoints):
    return {path.name for path in checkpoints.folder.iterdir()}


def test_a_checkpoint_is_due_so_many_seconds_after_the_last_one(tmp_path, monkeypatch):
    moment = [100.0]
    monkeypatch.setattr("rarlhf_nb.checkpoint.time.monotonic", lambda: moment[0])
    checkpoints, due = Checkpoints(tmp_path / "checkpoints", seconds=30), []
    for moment[0] in (129.9, 130.0):
        due.append(checkpoints.due())
    checkpoints.save(1, Checkpoint({}, {}))
    assert [*due, checkpoints.due()] == [False, True, False]


def test_a_damaged_checkpoint_is_none_of_the_two_that_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for iteration in (9, 10, 20):
        checkpoints.save(iteration, Checkpoint({}, {"iteration": iteration}))
    assert names(checkpoints) == {"checkpoint-10", "checkpoint-20"}
    (checkpoints.folder / "checkpoint-20" / "state.json").write_text("{}")
    with pytest.warns(UserWarning, match="is damaged: an older checkpoint is used"):
        assert checkpoints.latest().state["iteration"] == 10
    checkpoints.save(11, Checkpoint({}, {"iteration": 11}))
    assert names(checkpoints) == {"checkpoint-10", "checkpoint-11"}
    (checkpoints.folder / "checkpoint-12").mkdir()  # the process ended before it was complete
    assert checkpoints.latest().state["iteration"] == 11
    checkpoints.save(13, Checkpoint({}, {"iteration": 13}))
    assert names(checkpoints) == {"checkpoint-11", "checkpoint-13"}


def test_every_bit_flip_and_truncation_is_noticed_and_the_older_one_used(tmp_path):
    checkpoints, dice = Checkpoints(tmp_path / "checkpoints"), random.Random(0)
    tensors = {"a": torch.arange(12.0), "b": torch.ones(3, dtype=torch.int64)}
    for iteration in (1, 2):
        checkpoints.save(iteration, Checkpoint(tensors, {"iteration": iteration, "rows": [{"kl": 0.125}]}))
    older, newer = sorted(checkpoints.folder.iterdir())
    files = sorted(newer.iterdir())
    whole = {path: path.read_bytes() for path in files}
    for _ in range(60):
        path = dice.choice(files)
        content = bytearray(whole[path])
        if dice.random() < 0.5:
            content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        else:
            del content[dice.randrange(len(content)) :]
        path.write_bytes(content)
        with pytest.warns(UserWarning, match="is damaged"):
            found = checkpoints.latest()
        assert found.state["iteration"] == 1 and torch.equal(found.tensors["a"], tensors["a"])
        path.write_bytes(whole[path])
    assert checkpoints.latest().state["iteration"] == 2
    for folder in (older, newer):
        (folder / "state.json").unlink()
    with pytest.warns(UserWarning, match="is damaged"):
        assert checkpoints.latest() is None
