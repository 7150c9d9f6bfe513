"""A training that goes wrong is noticed, answered as the settings say, written down, and can go on from before."""

import json
import pickle
from dataclasses import replace
from unittest.mock import MagicMock

import pytest
import torch
from tiny import good_minus_bad, ppo_trainer, quark_trainer

from rarlhf_nb.checkpoint import Checkpoints
from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.explorer import live_training
from rarlhf_nb.lab.profiles import load_profile
from rarlhf_nb.monitor import Monitor, TrainingStopped, check_completions, check_kl
from rarlhf_nb.rollout import Rollout
from rarlhf_nb.settings import WatchSettings


def varied(prompts, completions, **columns):
    """Rewards that differ within every batch."""
    return [reward + 0.01 * i for i, reward in enumerate(good_minus_bad(prompts, completions))]


def cvar_ppo(watch=None, **changes):
    return ppo_trainer(reward=varied, watch=WatchSettings(**watch or {}), **{"epochs": 4} | changes)


def quark(watch=None, **changes):
    settings = {"steps": 6, "sample_interval": 2, "batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 2}
    return quark_trainer(reward=varied, watch=WatchSettings(**watch or {}), **settings | changes)


def spoil(trainer, part, change, at=2):
    """In iteration `at`, hand on `change(result)` in place of the result of a part of the training."""
    *path, name = part.split(".")
    owner = trainer
    for step in path:
        owner = getattr(owner, step)
    whole = getattr(owner, name)

    def spoiled(*arguments, **named):
        result = whole(*arguments, **named)
        return change(trainer, result) if trainer.iteration == at else result

    setattr(owner, name, spoiled)


def infinite_gradient(trainer, result):
    trainer.policy.model.transformer.wte.weight.grad[3, 0] = float("inf")
    return result


def one_completion(trainer, episodes):
    return replace(episodes, completions=["good good"] * len(episodes))


WRONG = {  # symptom -> the part of the training that is spoiled, and how
    "not_finite": ("backward", infinite_gradient),
    "kl": ("reference.token_log_probs", lambda trainer, log_probs: log_probs - 20),
    "negative_kl": ("reference.token_log_probs", lambda trainer, log_probs: torch.zeros_like(log_probs)),
    "ratio": ("sample", lambda trainer, rollout: replace(rollout, log_probs=rollout.log_probs - 10)),
    "value_loss": ("shape_rewards", lambda trainer, found: replace(found, value_targets=found.value_targets + 1000)),
    "equal_rewards": ("env_rewards", lambda trainer, rewards: torch.full_like(rewards, 0.5)),
    "no_variance": ("shape_rewards", lambda trainer, found: replace(found, advantages=found.advantages * 0 + 0.25)),
    "collapse": ("policy.sample", one_completion),
}
NEVER = ("not_finite", "warn")  # NaN must not reach the weights


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.policy.parameters()])


def every_iteration(folder):
    return Checkpoints(folder / "checkpoints", seconds=0)


@pytest.mark.parametrize(
    "symptom, answer",
    [(symptom, answer) for symptom in WRONG for answer in ("warn", "skip", "stop") if (symptom, answer) != NEVER],
)
def test_every_symptom_is_answered_as_the_settings_say_and_written_down(symptom, answer, tmp_path):
    trainer = cvar_ppo({symptom: answer}, log_file=tmp_path / "rlhf.jsonl")
    spoil(trainer, *WRONG[symptom])
    iterations = iter(trainer)
    next(iterations)
    before = weights(trainer)
    line = rf"^iteration 2: .*\({symptom}: {answer}\)\. [A-Z]"
    with pytest.raises(TrainingStopped, match=line) if answer == "stop" else pytest.warns(UserWarning, match=line):
        next(iterations)
    assert torch.equal(weights(trainer), before) == (answer != "warn")
    assert [row["iteration"] for row in lines(tmp_path / "rlhf.jsonl")] == [1, 2]
    (incident,) = lines(tmp_path / "rlhf.incidents.jsonl")
    assert (incident["iteration"], incident["symptom"], incident["action"]) == (2, symptom, answer)
    assert incident["numbers"] and 4 <= len(incident["episodes"]) <= 8
    assert set(incident["episodes"][0]) == {"prompt", "completion", "reward", "kl"}
    if answer == "skip":
        next(iterations)
        assert not torch.equal(weights(trainer), before)  # the next iteration is sound and trains


def test_a_gradient_that_is_not_finite_cannot_be_answered_with_a_warning_alone():
    with pytest.raises(UserError, match=r"watch\.not_finite = 'warn'"):
        load_profile("pocket", {"watch.not_finite": "warn"})


def test_an_incident_shows_the_episodes_that_it_is_about(tmp_path):
    monitor = Monitor(WatchSettings(kl="warn"), tmp_path / "rlhf.jsonl", "iteration", verbose=True)
    texts = [str(i) for i in range(40)]
    completions, kl = texts[:16] + ["same"] * 24, 5 * torch.arange(40.0)
    rollout = Rollout(texts, completions, *[None] * 4, env_rewards=torch.arange(40.0), kl=kl)
    with pytest.warns(UserWarning, match=r"the mean KL is 97\.5 nats per completion, above watch\.kl_bound = 50"):
        monitor.notice(check_kl(kl, bound=50), rollout)
    with pytest.warns(UserWarning, match="24 of 40 completions are the same"):
        monitor.notice(check_completions(rollout, collapse_bound=0.5), rollout)
    far, same = lines(tmp_path / "rlhf.incidents.jsonl")
    assert [episode["kl"] for episode in far["episodes"]] == [5.0 * i for i in range(39, 23, -1)]
    assert [episode["prompt"] for episode in same["episodes"]] == texts[16:32]
    assert far["numbers"] == {"kl": 97.5, "bound": 50.0}


@pytest.mark.parametrize("make_trainer", [cvar_ppo, quark])
def test_a_sound_training_is_the_same_without_the_watch_bit_for_bit(make_trainer, tmp_path, recwarn):
    watched = make_trainer(log_file=tmp_path / "watched.jsonl")
    blind = make_trainer(log_file=tmp_path / "blind.jsonl")
    blind.monitor = MagicMock()  # notices nothing and lets every step be made
    blind.accelerator.clip_grad_norm_ = lambda *arguments: torch.tensor(0.0)
    for trainer in (watched, blind):
        trainer.train()
    assert torch.equal(weights(watched), weights(blind))
    logs = [lines(tmp_path / f"{name}.jsonl") for name in ("watched", "blind")]
    for one, other in zip(*logs, strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}
    assert not list(tmp_path.glob("*.incidents.jsonl")) and [str(w.message) for w in recwarn] == []


@pytest.mark.filterwarnings("ignore::UserWarning")  # of what leads to the stop
@pytest.mark.parametrize(
    "make_trainer, learning_rate",
    [(cvar_ppo, 1.0), (cvar_ppo, 1e3), (cvar_ppo, 1e6), (cvar_ppo, 1e30), (quark, 1e3), (quark, 1e30)],
)
def test_a_learning_rate_far_too_high_stops_early(make_trainer, learning_rate):
    trainer = make_trainer(learning_rate=learning_rate)
    with pytest.raises(TrainingStopped, match=r"the training stops .*Lower learning_rate"):
        trainer.train()
    assert trainer.iteration < 4 and torch.isfinite(weights(trainer)).all()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_probabilities_that_nothing_can_be_drawn_from_stop_the_training():
    with pytest.raises(TrainingStopped, match="iteration 2: the policy's probabilities are not finite"):
        cvar_ppo(learning_rate=1e30, epochs=1).train()


def test_a_kl_that_is_not_finite_stops_whatever_the_settings(tmp_path):
    trainer = cvar_ppo({"not_finite": "skip", "kl": "warn"}, log_file=tmp_path / "rlhf.jsonl")
    spoil(trainer, "reference.token_log_probs", lambda trainer, log_probs: log_probs * float("nan"))
    iterations = iter(trainer)
    next(iterations)
    before = weights(trainer)
    with pytest.raises(
        TrainingStopped, match="iteration 2: the KL of 8 of 8 episodes is not finite; the training stops"
    ):
        next(iterations)
    assert torch.equal(weights(trainer), before)
    assert len(lines(tmp_path / "rlhf.jsonl")) == 1  # without a rank there is no row
    assert len(lines(tmp_path / "rlhf.incidents.jsonl")[0]["episodes"]) == 8


def test_a_new_training_starts_the_file_of_incidents_anew(tmp_path):
    trainer = cvar_ppo(log_file=tmp_path / "rlhf.jsonl")
    spoil(trainer, *WRONG["kl"])
    with pytest.raises(TrainingStopped):
        trainer.train()
    assert (tmp_path / "rlhf.incidents.jsonl").exists()
    cvar_ppo(log_file=tmp_path / "rlhf.jsonl").train()
    assert not (tmp_path / "rlhf.incidents.jsonl").exists()


def test_a_stop_leaves_a_good_checkpoint_and_a_lower_learning_rate_goes_on_from_it(tmp_path):
    log_file = tmp_path / "rlhf.jsonl"
    sound = cvar_ppo(log_file=log_file, checkpoints=every_iteration(tmp_path))
    for _ in zip(range(3), sound, strict=False):
        pass
    good = weights(sound)
    wild = cvar_ppo(learning_rate=10.0, log_file=log_file, checkpoints=every_iteration(tmp_path))
    with pytest.raises(UserError, match=r"other settings: .*resume\(other_settings=True\)"):
        wild.train()
    wild.resume(other_settings=True)
    with pytest.raises(
        TrainingStopped, match=rf"The last good checkpoint is that of iteration 3 in {tmp_path}"
    ) as stop:
        wild.train()
    assert str(pickle.loads(pickle.dumps(stop.value))) == str(stop.value)
    assert [row["iteration"] for row in lines(log_file)] == [1, 2, 3, 4]
    careful = cvar_ppo(learning_rate=1e-4, log_file=log_file, checkpoints=every_iteration(tmp_path))
    careful.resume(other_settings=True)
    assert careful.iteration == 3 and torch.equal(weights(careful), good)
    assert [group["lr"] for group in careful.optimizer.param_groups] == [1e-4]
    assert careful.optimizer.state_dict()["state"][0]["step"] == 12  # the moments are those of three iterations
    log = careful.train()
    assert log["iteration"].tolist() == [1, 2, 3, 4, 5, 6] and (log["value_loss"] < 10).all()
    assert [row["iteration"] for row in lines(log_file)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("at, words", [(2, "There is no good checkpoint yet"), (4, "that of iteration 2 ")])
def test_the_checkpoint_with_the_weights_that_a_stop_speaks_against_is_dropped(at, words, tmp_path):
    """A KL beyond its bound is that of the weights which the iteration before left, and saved."""
    trainer = cvar_ppo(checkpoints=every_iteration(tmp_path))
    spoil(trainer, *WRONG["kl"], at=at)
    with pytest.raises(TrainingStopped, match=words):
        trainer.train()
    assert f"checkpoint-{at - 1}" not in {path.name for path in trainer.checkpoints.folder.iterdir()}


def test_a_changed_beta_is_taken_and_an_adaptive_one_goes_on(tmp_path):
    controller, checkpoints = {"kl_target": 2.0, "kl_horizon": 100}, every_iteration(tmp_path)
    first = cvar_ppo(checkpoints=checkpoints, **controller)
    next(iter(first))
    adaptive, fixed = (cvar_ppo(checkpoints=checkpoints, **args) for args in (controller, {"kl_coef": 0.7}))
    for other in (adaptive, fixed):
        other.resume(other_settings=True)
    assert adaptive.kl_coef == first.kl_coef != 0.1 and fixed.kl_coef == 0.7


def test_quark_skips_a_gradient_that_is_not_finite_and_goes_on_with_another_learning_rate(tmp_path):
    trainer = quark({"not_finite": "skip"}, log_file=tmp_path / "quark.jsonl", checkpoints=every_iteration(tmp_path))
    spoil(trainer, "accelerator.clip_grad_norm_", lambda trainer, norm: norm * float("nan"), at=3)
    steps = iter(trainer)
    next(steps), next(steps)
    before = weights(trainer)
    with pytest.warns(UserWarning, match=r"step 3: gradient norm is nan; the rest of this update is skipped"):
        next(steps)
    assert torch.equal(weights(trainer), before)
    assert lines(tmp_path / "quark.incidents.jsonl")[0]["step"] == 3
    next(steps)  # three steps of the schedule are made: two of warm-up, one of decay
    other = quark(learning_rate=1e-3, checkpoints=every_iteration(tmp_path))
    other.resume(other_settings=True)
    assert other.iteration == 4 and torch.equal(weights(other), weights(trainer))
    assert other.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 3 / 4)


def test_quark_notices_its_kl_and_a_collapse():
    trainer = quark({"kl": "stop", "kl_bound": 4.0})
    with pytest.raises(TrainingStopped, match=r"step 2: the mean KL is .* above watch\.kl_bound = 4"):
        spoil(trainer, "terms", lambda trainer, terms: terms | {"kl_per_token": terms["kl_per_token"] + 1})
        spoil(trainer, "reference.sample", one_completion, at=1)
        with pytest.warns(UserWarning, match="step 1: 4 of 8|step 1: 8 of 8 completions are the same"):
            trainer.train()


def test_live_training_shows_a_stop_as_its_error_line():
    widget = live_training(lambda **setting: cvar_ppo(learning_rate=1.0), alpha=0.5, warm_start=1, rho=0.5)
    widget.start()
    widget.join(60)
    assert widget.state == "failed" and "TrainingStopped" in widget.status.value
    assert "iteration" in widget.status.value and "Traceback" not in widget.status.value
