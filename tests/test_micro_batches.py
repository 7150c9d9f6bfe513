"""Micro-batches that memory decides: what is found is said, and trains as if it had been set."""

from types import SimpleNamespace

import pytest
import torch
from tiny import ppo_trainer, tiny_policy

from rarlhf_nb import micro_batches
from rarlhf_nb.checkpoint import Checkpoints
from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.profiles import load_profile

OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def make_trainer(size, fits=lambda ids: True, **options):
    """A trainer whose policy and reference run out of memory unless `fits` allows the tokens (N, P + T) of a pass."""
    policy = tiny_policy(dtype=torch.float64)

    def full(module, inputs):
        if not fits(inputs[0]):
            raise OUT_OF_MEMORY

    policy.register_forward_pre_hook(full)
    return ppo_trainer(policy, micro_batch_size=size, learning_rate=1e-2, **options)


def trained(trainer):
    """The log without seconds, and the weights, of a whole training."""
    log = trainer.train().drop(columns="seconds")
    return log, torch.cat([parameter.flatten() for parameter in trainer.policy.parameters()])


def up_to_three(ids):
    return len(ids) <= 3


@pytest.mark.parametrize("size", [None, "auto"])
def test_what_memory_allows_trains_as_if_it_had_been_set(size, capsys):
    given, given_weights = trained(make_trainer(2))
    capsys.readouterr()
    found, found_weights = trained(make_trainer(size, up_to_three))
    assert found.equals(given) and torch.equal(found_weights, given_weights)
    assert "4 episodes at once do not fit into memory; from now on 2" in capsys.readouterr().out
    whole, whole_weights = trained(make_trainer(size))  # all fit
    torch.testing.assert_close(whole_weights, given_weights, atol=1e-7, rtol=0)
    for key in given.columns:
        assert whole[key].tolist() == pytest.approx(given[key].tolist(), abs=1e-6), key


def test_an_epoch_that_runs_out_of_memory_midway_is_begun_anew(capsys):
    updates = []

    def fits(ids):  # the second micro-batch of the first epoch is too much, when the first has left its gradient
        updates.append(len(ids)) if torch.is_grad_enabled() else None
        return updates != [4, 4]

    given, given_weights = trained(make_trainer(4))
    found, found_weights = trained(make_trainer(4, fits))
    assert updates[:6] == [4, 4, 2, 2, 2, 2]
    assert "from now on 2" in capsys.readouterr().out
    torch.testing.assert_close(found_weights, given_weights, atol=1e-7, rtol=0)
    for key in given.columns:
        assert found[key].tolist() == pytest.approx(given[key].tolist(), abs=1e-6), key


def test_a_resumed_training_goes_on_with_the_size_that_was_found(tmp_path):
    checkpoints = Checkpoints(tmp_path, seconds=0)
    next(iter(make_trainer("auto", up_to_three, checkpoints=checkpoints)))
    again = make_trainer("auto", checkpoints=checkpoints)  # more would fit now
    again.resume()
    assert (again.iteration, again.micro_batches.size) == (1, 2)
    again.train()
    assert again.micro_batches.size == 2


@pytest.mark.parametrize("size", [None, 1, "auto"])
def test_an_episode_that_does_not_fit_alone_is_said_with_what_helps(size):
    with pytest.raises(UserError, match="not even one episode fits.*gradient_checkpointing.*lora.*prompt_length"):
        make_trainer(size, lambda ids: not torch.is_grad_enabled()).train()


def test_under_fsdp_no_rank_can_begin_again_alone():
    def full(pieces):
        raise OUT_OF_MEMORY

    ranks = SimpleNamespace(rank=1, sharded=True)
    with pytest.raises(UserError, match="4 episodes at once do not fit .* rank 1: set ppo.micro_batch_size = 2"):
        micro_batches.MicroBatches(4, 8, ranks).run(8, full)
    with pytest.raises(UserError, match="ppo.micro_batch_size = 'auto': under FSDP.*give a number"):
        micro_batches.MicroBatches("auto", 8, ranks)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def broken(ids):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        make_trainer("auto", broken).train()


@pytest.mark.parametrize("size", [0, -4, "all", 2.5, True])
def test_a_size_that_is_none_is_named(size):
    with pytest.raises(UserError, match=f"ppo.micro_batch_size = {size!r}: "):
        load_profile("pocket", {"ppo.micro_batch_size": size})
    assert load_profile("pocket", {"ppo.micro_batch_size": "auto"}).ppo.micro_batch_size == "auto"
