"""Widgets show the library's numbers at every setting of their controls, and texts from data as text."""

import sys
import threading
from types import SimpleNamespace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import pytest
from made_up import made_up_episodes
from parsed import Parsed

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab import explorer as widgets
from rarlhf_nb.lab.evaluation.cells import interval_cell
from rarlhf_nb.lab.evaluation.metrics import (
    bootstrap_interval,
    bootstrap_weights,
    seed_interval,
    tail_mean,
)
from rarlhf_nb.lab.evaluation.scores import sweep_families
from rarlhf_nb.lab.explorer import live_training, risk_explorer, schedule_designer
from rarlhf_nb.lab.explorer.schedule_designer import saved_share
from rarlhf_nb.lab.explorer.tails import between, measure_tails, steps_between
from rarlhf_nb.lab.plots.figures import TRAINING_PANELS
from rarlhf_nb.lab.plots.renderer import is_static
from rarlhf_nb.lab.texts import visible
from rarlhf_nb.risk import SoftRiskSchedule, cvar, tail_count, var

SIZE = 120
SCORES = np.random.default_rng(0).normal(size=SIZE)
METHODS = ("sft", "rlhf", "ra_rlhf@0.4", "ra_rlhf@0.1", "ra_rlhf_ru@0.4")
HOSTILE = [
    "<script>window.hacked = 1</script>",
    '<img src=x onerror="window.hacked = 1">',
    "</div></td></table><b>out</b>",
    "</bdi></details>`code` **bold** [link](javascript:alert(1)) # head",
    r"$\frac{1}{2}$ $$x$$ \(y\) \[z\]",
    "nul \x00 bell \x07 escape \x1b[31m del \x7f c1 \x85 lone \ud800",
    "right \u202eleft\u202c \u2067isolate\u2069 \u200fmark zero\u200bwidth",
    "line\nline\r\nline\ttab\u2028separator",
    "long <i>" * 2500,
    "&lt;b&gt; &amp; \" ' `",
]


def episodes(shift: float, seed: int) -> pd.DataFrame:
    """Half as many prompts, with two samples each."""
    noise, half = np.random.default_rng(seed).normal(size=SIZE), SIZE // 2
    return made_up_episodes(
        SCORES + shift + noise,
        prompt=[f"prompt {i}" for i in range(half)] * 2,
        completion=[f"completion {i} of {seed}" for i in range(SIZE)],
        prompt_score=np.tile(SCORES[:half], 2),
        kl=np.random.default_rng(seed).random(SIZE),
        seed=np.repeat([0, 1], half),
    )


EPISODES = {method: episodes(0.3 * number, number) for number, method in enumerate(METHODS)}


@pytest.fixture
def shown(monkeypatch):
    """The figures that are shown."""
    figures = []
    monkeypatch.setattr(go.Figure, "show", lambda figure: figures.append(figure))
    return figures


def explorer(**changes):
    return risk_explorer(EPISODES, **{"resamples": 40} | changes)


OURS = {"style", "div", "table", "thead", "tbody", "tr", "th", "td", "b", "bdi", "p", "details", "summary"}


# The risk explorer


def explored(widget, name, alpha=None):
    """A method of the content, at a trained alpha; and the place of each measured alpha."""
    slots = {group["key"]: group["slots"] for group in widget.content["groups"]}[name]
    return next(slot for slot in slots if slot["alpha"] == alpha)


def place(alpha):
    return round(100 * alpha) - 1


@pytest.mark.parametrize("alpha", [0.05, 0.37, 1.0])
def test_every_measured_alpha_has_the_librarys_numbers(alpha):
    widget = explorer()
    content, edges, at = widget.content, widget.explored.edges, place(alpha)
    assert content["measured"][at] == alpha and content["kept"][at] == tail_count(alpha, SIZE)
    slots = [slot for group in content["groups"] for slot in group["slots"]]
    assert [slot["source"] for slot in slots] == ["sft", "rlhf", "ra_rlhf@0.1", "ra_rlhf@0.4", "ra_rlhf_ru@0.4"]
    for slot in slots:
        table = EPISODES[slot["source"]]
        rewards = table["reward"].to_numpy()
        assert slot["var"][at] == pytest.approx(var(rewards, alpha), abs=1e-5)
        assert slot["reward"]["own"][0][at] == pytest.approx(cvar(rewards, alpha), abs=1e-5)
        assert slot["mean"]["own"][0] == pytest.approx(rewards.mean(), abs=1e-5)
        assert slot["kl"]["own"][0] == pytest.approx(table["kl"].mean(), abs=1e-5)
        np.testing.assert_array_equal(slot["counts"], np.histogram(rewards, edges)[0])
        hardest = table.sort_values("prompt_score", kind="stable").head(tail_count(alpha, SIZE))
        inside = content["methods"][slot["source"]]["inside"][at]
        np.testing.assert_array_equal(inside, np.histogram(hardest["reward"], edges)[0])


@pytest.mark.parametrize("ranking", ["reward", "prompt_score"])
def test_the_intervals_are_those_of_the_library(ranking):
    widget = explorer()
    positions = np.tile(np.arange(SIZE // 2), 2)
    weights = bootstrap_weights(SIZE // 2, 40, np.random.default_rng([0, 0]))[:, positions]
    found = {
        method: tail_mean(EPISODES[method]["reward"].to_numpy(), EPISODES[method][ranking].to_numpy(), 0.2, weights)
        for method in ("sft", "rlhf", "ra_rlhf@0.1")
    }
    numbers = explored(widget, "ra_rlhf", 0.1)[ranking]
    expected = {"own": found["ra_rlhf@0.1"], "difference": found["ra_rlhf@0.1"] - found["rlhf"]}
    for name, statistics in expected.items():
        here = [values[place(0.2)] for values in numbers[name]]
        assert here == pytest.approx(bootstrap_interval(statistics), abs=1e-5)
    assert explored(widget, "rlhf")[ranking]["difference"] is None
    table = widget.explored.numbers(0.2, ranking, 0.1)
    assert table.iloc[:3, 0].tolist() == [interval_cell(bootstrap_interval(found[method])) for method in found]
    difference = bootstrap_interval(found["ra_rlhf@0.1"] - found["rlhf"])
    star = " *" if difference.low > 0 or difference.high < 0 else ""
    assert table.iloc[1:3, 1].tolist() == ["–", interval_cell(difference) + star]


@pytest.mark.parametrize("ranking", ["reward", "prompt_score"])
def test_texts_are_of_the_tail_at_every_alpha(ranking):
    widget = explorer()
    content = widget.content
    for alpha in (0.03, 0.5):
        table = EPISODES["sft"].sort_values(ranking, kind="stable").head(tail_count(alpha, SIZE))
        rows = content["methods"]["sft"]["rows"][ranking][place(alpha)]
        assert rows[0] == table.index[0] and rows[-1] == table.index[-1] and set(rows) <= set(table.index)
        beside = EPISODES["rlhf"].loc[rows[-1]]
        text, reward, *ranks = content["methods"]["rlhf"]["completions"][rows[-1]]
        assert text == beside["completion"] and reward == pytest.approx(beside["reward"], abs=1e-5)
        order = EPISODES["rlhf"][ranking].argsort(kind="stable").tolist()
        assert ranks[["reward", "prompt_score"].index(ranking)] == order.index(rows[-1])


def test_the_view_starts_as_asked():
    view = explorer().content["view"]
    assert view["methods"] == ["rlhf", "ra_rlhf", "ra_rlhf_ru"] and view["anchor"] == "rlhf" and view["trained"] == 0.1
    asked = {"alpha": 0.3, "ranking": "prompt_score", "trained": 0.4, "methods": ["sft", "ra_rlhf"], "anchor": "sft"}
    content = explorer(**asked, stacked=True).content
    assert content["view"] == asked | {"stacked": True}
    assert content["trained"] == [0.1, 0.4] and not content["continuous"]


def test_a_sweep_takes_in_its_plain_name_at_the_profiles_alpha():
    methods = ["rlhf", "ra_rlhf", "ra_rlhf@0.1", "ra_rlhf_ru"]
    assert sweep_families(methods) == {"ra_rlhf": {0.1: "ra_rlhf@0.1"}}
    assert sweep_families(methods, 0.4) == {"ra_rlhf": {0.1: "ra_rlhf@0.1", 0.4: "ra_rlhf"}}
    tables = {method: EPISODES["rlhf"] for method in methods}
    assert risk_explorer(tables, resamples=5, profile_alpha=0.4).content["trained"] == [0.1, 0.4]


def test_without_a_sweep_there_is_no_second_slider():
    tables = {method: EPISODES[method].drop(columns="kl") for method in ("sft", "rlhf")}
    content = risk_explorer(tables, resamples=5, other_seeds=other_seeds()).content
    assert content["price"] is None and content["trained"] == []
    assert content["groups"][0]["slots"][0]["kl"]["own"] == [None, None, None]


def other_seeds(**changes):
    """Two more training seeds of the sweep; the second lacks a method."""
    tables = {
        seed: {method: episodes(0.3 * number, seed * 10 + number) for number, method in enumerate(METHODS)}
        for seed in (2, 3)
    }
    del tables[3]["ra_rlhf@0.1"]
    return tables | changes


def test_other_seeds_give_the_price_its_bands_and_change_nothing_else(shown):
    others = other_seeds()
    plain, banded = explorer(), explorer(other_seeds=others)
    assert {**plain.content, "price": None} == {**banded.content, "price": None}
    found = {0.1: [EPISODES, others[2]], 0.4: [EPISODES, others[2], others[3]]}  # of ra_rlhf
    intervals = [
        seed_interval([cvar(table[f"ra_rlhf@{alpha}"]["reward"].to_numpy(), 0.1) for table in tables])
        for alpha, tables in found.items()
    ]
    band, line = (trace for trace in banded.explored.price.data[:2])
    np.testing.assert_allclose(line.y[:2], [interval.value for interval in intervals])
    np.testing.assert_allclose([band.y[:2], band.y[:-3:-1]], np.transpose([interval[1:] for interval in intervals]))
    assert not any(trace.fill and len(trace.x) for trace in plain.explored.price.data)
    assert explorer(other_seeds=others, interactive=False) is None and shown[1] == banded.explored.price


def test_a_sweep_of_seven_alphas_and_1_moves_to_each():
    alphas = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
    tables = {f"{name}@{alpha:g}": EPISODES["rlhf"] for name in ("ra_rlhf", "ra_rlhf_ru") for alpha in alphas}
    widget = risk_explorer({"rlhf": EPISODES["rlhf"]} | tables, resamples=5, other_seeds={2: tables})
    assert widget.content["trained"] == list(alphas)
    for alpha in alphas:
        chosen = [slot.method for slot in widget.explored.chosen(alpha)]
        assert chosen == ["rlhf", f"ra_rlhf@{alpha:g}", f"ra_rlhf_ru@{alpha:g}"]


BROKEN = {"ra_rlhf@0.1": EPISODES["ra_rlhf@0.1"].drop(columns="reward")}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"episodes": {"sft": EPISODES["sft"], "rlhf": EPISODES["rlhf"].iloc[::-1]}}, "different rows"),
        ({"ranking": "length"}, "prompt_score"),
        ({"methods": ["ra_rlhf@0.1"]}, "'ra_rlhf@0.1' is not in this run: choose among sft, rlhf, ra_rlhf, ra_rlhf_ru"),
        ({"methods": []}, r"methods = \[\] is empty: choose among sft, rlhf"),
        ({"anchor": "nobody"}, "'nobody' is not in this run"),
        ({"alpha": 0}, "alpha = 0"),
        ({"trained": 0}, "alpha = 0"),
        (
            {"other_seeds": {7: BROKEN}},
            r"other_seeds, seed 7: .*ra_rlhf@0\.1\.parquet lacks the column reward",
        ),
        ({"other_seeds": {7: {}}}, "other_seeds, seed 7: episodes is empty"),
    ],
)
def test_what_does_not_fit_is_named(wrong, words):
    with pytest.raises(UserError, match=words):
        risk_explorer(**{"episodes": EPISODES, "resamples": 5} | wrong)


# A policy that is conditioned on alpha


def conditioned(alphas=(1.0, 0.4, 0.1)) -> pd.DataFrame:
    tables = [episodes(1 - alpha, 50 + place(alpha)).assign(alpha=alpha) for alpha in alphas]
    return pd.concat(tables, ignore_index=True)


def test_a_conditioned_policy_moves_between_its_evaluations():
    widget = explorer(alphas={"conditioned": conditioned()}, methods=["rlhf", "conditioned"])
    content = widget.content
    steps = content["trained"]
    assert content["continuous"] and (steps[0], steps[-1]) == (0.1, 1.0) and np.diff(np.log(steps)).max() < 0.0501
    assert content["view"]["trained"] == pytest.approx(0.316, abs=0.01)
    alpha = steps[20]
    slot = explored(widget, "conditioned", alpha)
    lower, upper = (episodes(1 - at, 50 + place(at)) for at in (0.1, 0.4))
    weight = np.log(alpha / 0.1) / np.log(0.4 / 0.1)
    quantiles = (1 - weight) * np.sort(lower["reward"]) + weight * np.sort(upper["reward"])
    assert slot["mean"]["own"][0] == pytest.approx(quantiles.mean(), abs=1e-5)
    assert slot["reward"]["own"][0][place(0.37)] == pytest.approx(cvar(quantiles, 0.37), abs=1e-5)
    assert slot["var"][place(0.37)] == pytest.approx(var(quantiles, 0.37), abs=1e-5)
    assert slot["kl"]["own"][0] == pytest.approx(
        (1 - weight) * lower["kl"].mean() + weight * upper["kl"].mean(), abs=1e-5
    )
    np.testing.assert_array_equal(slot["counts"], np.histogram(quantiles, widget.explored.edges)[0])
    assert slot["source"] == ("conditioned@0.4" if weight > 0.5 else "conditioned@0.1")


def test_a_batch_run_shows_the_evaluation_nearest_to_the_trained_alpha(shown):
    view = {"ranking": "prompt_score", "trained": 0.25, "alpha": 0.137, "methods": ["conditioned"]}
    assert explorer(alphas={"conditioned": conditioned()}, resamples=0, interactive=False, **view) is None
    curve, price = shown
    nearest = conditioned().query("alpha == 0.4")["reward"]  # to 0.25
    np.testing.assert_allclose(curve.data[0].y[-1], nearest.mean())
    (line,) = [trace for trace in price.data if trace.name == "Conditioned" and trace.yaxis == "y2"]
    assert list(line.x) == [0.1, 0.4, 1.0]


def test_at_an_evaluated_alpha_and_beyond_the_ends_the_evaluation_itself_is_shown():
    evaluated = measure_tails({"a": EPISODES["sft"], "b": EPISODES["rlhf"]}, resamples=3)
    tails = {0.2: evaluated["a"], 0.8: evaluated["b"]}
    for alpha, expected in ((0.2, "a"), (0.05, "a"), (0.8, "b"), (1.0, "b")):
        found = between(tails, alpha)
        np.testing.assert_allclose(found.rewards, np.sort(evaluated[expected].rewards))
        np.testing.assert_allclose(found.means["prompt_score"], evaluated[expected].means["prompt_score"])
    assert steps_between([0.5]) == [0.5]


def test_fresh_completions_come_from_the_policy_and_its_errors_as_text():
    asked, answers = [], []

    def sample(prompts, alpha):
        if alpha < 0.1:
            raise UserError("alpha = <b>0.01</b> is too small")
        asked.append((prompts, alpha))
        return [(HOSTILE[5], 1.0) for _ in prompts]

    widget = explorer(alphas={"conditioned": conditioned()}, sample=sample)
    widget.mail.send = answers.append
    for alpha in (0.25, 0.01):
        widget._handle_custom_msg({"alpha": alpha}, [])
    hardest = EPISODES["sft"].drop_duplicates("prompt").nsmallest(3, "prompt_score")
    assert asked == [(hardest["prompt"].tolist(), 0.25)]
    fresh = {"alpha": 0.25, "completions": [[visible(HOSTILE[5]), 1.0]] * 3}
    assert answers == [fresh, {"alpha": 0.01, "error": "alpha = <b>0.01</b> is too small"}]
    columns = widget.content["columns"]
    assert [prompt for prompt, _ in columns["prompts"]] == hardest["prompt"].tolist()
    expected = episodes(0.9, 50 + place(0.1))["completion"].iloc[hardest.index].tolist()
    assert columns["alphas"][0] == 0.1 and [text for text, _ in columns["completions"][0]] == expected


# Hostile texts


def test_hostile_texts_are_text_in_every_widget():
    exported = {name for name in widgets.__all__ if name.islower()}
    known = {"live_training", "risk_explorer", "schedule_designer"}
    assert exported == known  # a new widget needs a hostile text here
    texts = [text.replace("\ud800", "") for text in HOSTILE * SIZE][:SIZE]  # a table cannot hold a lone surrogate
    hostile = "<script>window.hacked = 1</script>"
    tables = {
        method: EPISODES["rlhf"].assign(prompt=(texts[: SIZE // 2] * 2), completion=texts)
        for method in ("rlhf", hostile)
    }
    swept = {f"{hostile}@{alpha}": tables[hostile] for alpha in (0.2, 0.4)}
    explored = risk_explorer(tables | swept, resamples=5, alpha=1.0, other_seeds={2: swept})
    trained = live_training(FakeTrainer.factory(texts=HOSTILE[:8]))
    trained.start()
    trained.join(30)
    assert trained.state == "done"
    assert all(Parsed(page).only_has(OURS, {"class"}) for page in (trained.samples.value, trained.status.value))
    hovers = [text for trace in trained.batch.figure.data for text in trace.text]
    assert Parsed("".join(hovers)).only_has({"br"})
    names = [slot["name"] for group in explored.content["groups"] for slot in group["slots"]]  # for plotly
    names += [trace.get("name", "") for trace in explored.content["price"]["data"]]
    assert not any("<" in name for name in names)


# The schedule designer


def test_the_schedule_is_drawn_and_what_it_saves_is_its_area():
    widget = schedule_designer(SoftRiskSchedule(10, 0.5, 20, warm_start=5, rho=0.9))
    widget.setting["alpha"].value, widget.setting["batch_size"].value = 0.2, 40
    schedule = SoftRiskSchedule(40, 0.2, 20, warm_start=5, rho=0.9)
    line = widget.curves.figure.data[-1]
    np.testing.assert_allclose(line.y, [100 * schedule.kept(m) / 40 for m in range(1, 21)])
    assert list(line.customdata) == schedule.kept_counts()
    assert f"{100 * (1 - sum(schedule.kept_counts()) / 800):.1f} %" in widget.saved.value
    widget.along.value = "share"
    assert widget.curves.figure.data[-1].x[-1] == widget.curves.figure.data[0].x[-1] == 100
    assert widget.curves.figure.layout.xaxis.title.text == "share of the iterations (%)"
    assert saved_share(SoftRiskSchedule(10, 1.0, 20, warm_start=0, rho=1.0)) == 0


def test_settings_that_do_not_fit_together_are_named_and_not_drawn():
    widget = schedule_designer()
    before = list(widget.curves.figure.data[-1].y)
    widget.setting["iterations"].value = 20
    assert "warm_start = 30" in widget.saved.value and "error" in widget.saved.value
    assert list(widget.curves.figure.data[-1].y) == before
    widget.setting["iterations"].value = 194
    assert "gradient work saved" in widget.saved.value


# Live training


class FakeTrainer:
    """A trainer whose rewards rise with the iteration; each release of a `gate` lets one iteration through."""

    def __init__(self, alpha, seed, texts, iterations=4, gate=None, fail_at=None, **setting):
        self.args, self.iteration, self.alpha = SimpleNamespace(iterations=iterations), 0, alpha
        self.rng, self.texts, self.gate, self.fail_at = np.random.default_rng(seed), texts, gate, fail_at

    @classmethod
    def factory(cls, texts=("a", "b", "c", "d", "e", "f", "g", "h"), **changes):
        return lambda **setting: cls(**setting, texts=list(texts), **changes)

    def next_prompts(self):
        return {"prompts": self.texts}

    def step(self, prompts):
        if self.gate is not None:
            assert self.gate.acquire(timeout=20)
        if self.iteration == self.fail_at:
            raise UserError("the <b>reward</b> is NaN")
        self.iteration += 1
        rewards = self.rng.normal(size=len(prompts)) + self.iteration
        self.rollout = SimpleNamespace(
            env_rewards=rewards,
            kl=self.rng.random(len(prompts)),
            prompts=prompts,
            completions=prompts,
        )
        lowest = np.argsort(rewards)[: tail_count(self.alpha, len(prompts))]
        self.targets = SimpleNamespace(tail=np.sort(lowest))
        return {}


def wait_for(condition):
    waited = threading.Event()
    for _ in range(1000):
        if condition():
            return
        waited.wait(0.01)
    raise AssertionError("it did not happen in 10 s")


def train(widget):
    widget.start()
    widget.join(20)


def rows(widget, number=0):
    return list(widget.curves.values())[number] if len(widget.curves) > number else []


def test_training_grows_the_curves_and_draws_the_batch():
    widget = live_training(FakeTrainer.factory(), alpha=0.4, tail_share=0.25)
    widget.start()
    widget.join(20)
    assert widget.state == "done" and [row["iteration"] for row in rows(widget)] == [1, 2, 3, 4]
    expected = np.random.default_rng(1).normal(size=8) + 1
    assert rows(widget)[0]["mean"] == pytest.approx(expected.mean())
    assert rows(widget)[0]["tail"] == pytest.approx(cvar(expected, 0.25))
    mean, tail = widget.curve.figure.data[-2:]
    assert list(mean.y) == [row["mean"] for row in rows(widget)] and tail.xaxis == "x2"
    assert list(tail.y) == [row["tail"] for row in rows(widget)]
    dropped, kept = widget.batch.figure.data
    assert len(dropped.x) == 4 and len(kept.x) == 4 and max(kept.x) < min(dropped.x)
    assert "Iteration 4 of 4" in widget.status.value and widget.samples.value.count("<tr>") == 4


def test_training_pauses_resumes_and_stops_between_iterations():
    gate = threading.Semaphore(0)
    widget = live_training(FakeTrainer.factory(iterations=100, gate=gate))
    widget.start_button.click()
    gate.release(2)
    wait_for(lambda: len(rows(widget)) == 2)
    widget.pause_button.click()
    assert widget.state == "paused" and widget.pause_button.description == "Resume"
    gate.release(3)  # an iteration under way may end, but no other begins
    assert not threading.Event().wait(0.3) and len(rows(widget)) in (2, 3)
    paused = len(rows(widget))
    assert not threading.Event().wait(0.1) and len(rows(widget)) == paused
    widget.pause_button.click()
    wait_for(lambda: len(rows(widget)) == 5)
    assert widget.state == "running" and widget.start_button.disabled
    widget.stop_button.click()
    gate.release(1)
    widget.join(20)
    assert widget.state == "stopped" and len(rows(widget)) <= 6 and not widget.start_button.disabled
    assert widget.status.value.startswith(f"Stopped. Iteration {len(rows(widget))} of 100")


def test_each_message_to_the_browser_has_a_whole_figure(monkeypatch):
    widget = live_training(FakeTrainer.factory(iterations=3))
    drawings, sent = (widget.curve, widget.batch), ([], [])
    for drawing, states in zip(drawings, sent, strict=True):
        monkeypatch.setattr(drawing.mail.comm, "send", lambda data, buffers, to=states: to.append(data["state"]))
    widget.start()
    widget.join(20)
    for drawing, states in zip(drawings, sent, strict=True):
        assert len(states) == 3 and set(states[-1]) == {"value"}
        assert pio.from_json(states[-1]["value"]) == drawing.figure
    assert len(widget.curve.figure.data[-1].x) == 3


def test_another_setting_keeps_the_earlier_curve():
    widget = live_training(FakeTrainer.factory())
    widget.start()
    widget.join(20)
    first = list(widget.curve.figure.data[-2].y)
    for name, value in {"alpha": 0.1, "seed": 7, "estimator": "rockafellar_uryasev"}.items():
        widget.setting[name].value = value
    widget.start()
    widget.join(20)
    assert list(widget.curve.figure.data[-4].y) == first and len(widget.curves) == 2
    names = [trace.name for trace in widget.curve.figure.data[-4::2]]
    assert names == ["1: tail, α 0.4, n 5, ρ 0.95, seed 1", "2: RU, α 0.1, n 5, ρ 0.95, seed 7"]
    assert widget.curve.figure.data[-4].line.color != widget.curve.figure.data[-2].line.color


def test_starting_another_widget_stops_the_one_that_trains():
    gate = threading.Semaphore(0)
    first = live_training(FakeTrainer.factory(gate=gate))
    first.start()
    second = live_training(FakeTrainer.factory())
    second.start()
    gate.release(9)
    first.join(20), second.join(20)
    assert (first.state, second.state) == ("stopped", "done")


@pytest.mark.parametrize("make_trainer", [FakeTrainer.factory(fail_at=2), lambda **setting: int("<b>no</b>")])
def test_a_failure_is_shown_as_text_and_another_start_is_possible(make_trainer):
    widget = live_training(make_trainer)
    widget.start()
    widget.join(20)
    assert widget.state == "failed" and not widget.start_button.disabled
    assert "Error</b>" in widget.status.value and "&lt;b&gt;" in widget.status.value
    widget.make_trainer = FakeTrainer.factory()
    widget.start()
    widget.join(20)
    assert widget.state == "done"


# In a batch run


def test_if_nobody_is_there_the_same_is_shown_as_figures_and_tables(shown, monkeypatch):
    for module in ("widget", "schedule_designer", "live_training"):
        # not imported by name, since the package exports functions of the same names
        monkeypatch.setattr(sys.modules[f"rarlhf_nb.lab.explorer.{module}"], "display", shown.append)
    assert not is_static() and is_static(interactive=False)
    monkeypatch.setenv("RARLHF_STATIC", "1")
    assert is_static()
    log = pd.DataFrame({key: [0.0, 1.0] for key in ("iteration", *TRAINING_PANELS)})
    assert explorer(alpha=0.2) is None and len(shown) == 4
    assert "CVaR 20 %" in shown[2].data and "completion" in shown[3].data
    assert schedule_designer() is None and len(shown) == 6
    assert live_training(FakeTrainer.factory()) is None and len(shown) == 7
    assert live_training(FakeTrainer.factory(), earlier={"rlhf": log}) is None and len(shown) == 8
    titled = [figure.layout for figure in shown if isinstance(figure, go.Figure) and figure.layout.title.text]
    assert len(titled) == 4 and all(layout.legend.y < layout.title.y for layout in titled)  # below it, not across it
