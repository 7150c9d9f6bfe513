"""Widgets show the library's numbers at every setting of their controls, and texts from data as text."""

import gc
import sys
import threading
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from rarlhf_nb.core.errors import UserError
from rarlhf_nb.measuring.cells import interval_cell
from rarlhf_nb.measuring.metrics import (
    bootstrap_interval,
    bootstrap_weights,
    perplexity,
    seed_interval,
    tail_mean,
    tail_means,
)
from rarlhf_nb.measuring.sweeps import sweep_families
from rarlhf_nb.showing import widgets
from rarlhf_nb.showing.explorer_figures import saved_share
from rarlhf_nb.showing.figures import TRAINING_PANELS
from rarlhf_nb.showing.pictures import is_static
from rarlhf_nb.showing.widgets import live_training, progress_table, risk_explorer, schedule_designer
from rarlhf_nb.showing.widgets.progress_table import Shown
from rarlhf_nb.showing.widgets.text import SHORT, hover_text, text_html, visible
from rarlhf_nb.training.risk import SoftRiskSchedule, cvar, tail_count, var

RNG = np.random.default_rng(0)
SIZE = 120
SCORES = RNG.normal(size=SIZE)
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
    return pd.DataFrame(
        {
            "prompt": [f"prompt {i}" for i in range(SIZE)],
            "completion": [f"completion {i} of {seed}" for i in range(SIZE)],
            "prompt_score": SCORES,
            "reward": SCORES + shift + np.random.default_rng(seed).normal(size=SIZE),
            "kl": np.random.default_rng(seed).random(SIZE),
            "label": 0,
            "group": "all",
            "seed": np.repeat([0, 1], SIZE // 2),
        }
    ).assign(prompt=lambda t: t["prompt"].head(SIZE // 2).tolist() * 2, prompt_score=np.tile(SCORES[: SIZE // 2], 2))


EPISODES = {method: episodes(0.3 * number, number) for number, method in enumerate(METHODS)}


def explorer(**changes):
    return risk_explorer(EPISODES, **{"resamples": 40} | changes)


class Tags(HTMLParser):
    """The tags and attributes of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data):
        self.text += data


OURS = {"style", "div", "table", "thead", "tbody", "tr", "th", "td", "b", "bdi", "p", "details", "summary"}


# The statistics


@pytest.mark.parametrize("share", [0.01, 0.07, 0.1, 0.33, 1.0])
@pytest.mark.parametrize("keys", ["reward", "prompt_score"])
def test_tail_means_are_those_of_metrics_in_every_resample(share, keys):
    table = EPISODES["rlhf"].assign(prompt_score=EPISODES["rlhf"]["prompt_score"].round())  # ties
    values, order = table["reward"].to_numpy(), table[keys].to_numpy()
    weights = bootstrap_weights(SIZE, 70, np.random.default_rng(1))
    found = tail_means(values, order, weights, np.array([share]))
    assert found.shape == (1, 71)
    np.testing.assert_allclose(found[0], tail_mean(values, order, share, weights), atol=1e-10)


# The risk explorer


@pytest.mark.parametrize("alpha", [0.05, 0.37, 1.0])
def test_moving_the_slider_moves_every_number_to_the_librarys(alpha):
    widget = explorer()
    widget.alpha.value = alpha
    shown = widget.exploration.shown(0.1)
    assert [slot.method for slot in shown] == ["sft", "rlhf", "ra_rlhf@0.1", "ra_rlhf_ru@0.4"]
    bars = widget.distributions.widget.data
    for place, slot in enumerate(shown):
        rewards = EPISODES[slot.method]["reward"].to_numpy()
        inside, outside, value_at_risk, tail_line, tail_part, whole, second = bars[7 * place : 7 * place + 7]
        assert inside.y.sum() == tail_count(alpha, SIZE) and inside.y.sum() + outside.y.sum() == SIZE
        assert list(value_at_risk.x) == list(second.x) == [var(rewards, alpha)] * 2
        assert tail_line.x[0] == pytest.approx(cvar(rewards, alpha))
        assert whole.y[-1] == 100 and inside.marker.opacity is None and outside.marker.opacity == 0.3
        drawn = ~np.isnan(tail_part.y)
        assert (tail_part.y[drawn] == whole.y[drawn]).all() and (tail_part.x[drawn] <= var(rewards, alpha)).all()
        assert (np.isnan(tail_part.y) == (tail_part.x > var(rewards, alpha))).all()
        title = widget.distributions.widget.layout.annotations[place].text
        assert f"VaR {var(rewards, alpha):.2f}, CVaR {cvar(rewards, alpha):.2f}" in title
        assert widget.curve.widget.data[3 * place + 3].y[0] == pytest.approx(cvar(rewards, alpha))
    assert list(widget.curve.widget.data[0].x) == [100 * alpha] * 2


def test_no_garbage_is_collected_in_a_move():
    widget, collecting = explorer(), []
    widget.table.observe(lambda _: collecting.append(gc.isenabled()), "value")
    widget.alpha.value = 0.5
    assert collecting == [False] and gc.isenabled()


@pytest.mark.parametrize("ranking", ["reward", "prompt_score"])
def test_the_table_holds_the_intervals_of_the_library(ranking):
    widget = explorer()
    widget.ranking.value = ranking
    widget.alpha.value = 0.2
    positions = np.tile(np.arange(SIZE // 2), 2)
    weights = bootstrap_weights(SIZE // 2, 40, np.random.default_rng([0, 0]))[:, positions]
    found = {
        method: tail_mean(EPISODES[method]["reward"].to_numpy(), EPISODES[method][ranking].to_numpy(), 0.2, weights)
        for method in ("sft", "rlhf", "ra_rlhf@0.1")
    }
    page = widget.table.value
    for method in found:
        assert interval_cell(bootstrap_interval(found[method])) in page
    difference = bootstrap_interval(found["ra_rlhf@0.1"] - found["rlhf"])
    star = " *" if difference.low > 0 or difference.high < 0 else ""
    assert f">{interval_cell(difference)}{star}</td>" in page
    assert ("VaR" in widget.distributions.widget.layout.annotations[0].text) == (ranking == "reward")
    assert len(widget.distributions.widget.data[2].x) == (2 if ranking == "reward" else 0)


@pytest.mark.parametrize("ranking", ["reward", "prompt_score"])
def test_texts_are_of_the_tail_that_is_now(ranking):
    widget = explorer()
    widget.ranking.value, widget.anchor.value = ranking, "sft"
    pages = []
    for alpha in (0.03, 0.5):
        widget.alpha.value = alpha
        table = EPISODES["sft"].sort_values(ranking, kind="stable").head(tail_count(alpha, SIZE))
        page = widget.texts.value
        assert f">{table['completion'].iloc[0]}<" in page and f">{table['completion'].iloc[-1]}<" in page
        beside = EPISODES["rlhf"].loc[table.index[-1]]
        assert f"<b>{beside['reward']:+.2f}</b> <bdi>{beside['completion']}</bdi>" in page
        assert f"of the {len(table)} episodes" in page
        pages.append(page)
    assert pages[0] != pages[1]


def test_the_trained_alpha_changes_the_panel_and_the_price():
    widget = explorer(ranking="reward")
    assert widget.trained.options == (0.1, 0.4)
    widget.anchor.value = "ra_rlhf@0.1"
    widget.trained.value = 0.4
    assert widget.anchor.value == "ra_rlhf@0.4"
    assert widget.distributions.widget.data[16].x[0] == var(EPISODES["ra_rlhf@0.4"]["reward"], widget.alpha.value)
    assert "RA-RLHF α 0.4" in widget.distributions.widget.layout.annotations[2].text
    cost = widget.price.widget.data[4]  # KL of ra_rlhf: the third panel, the first of two families
    np.testing.assert_allclose(cost.y, [EPISODES[f"ra_rlhf@{alpha}"]["kl"].mean() for alpha in (0.1, 0.4)])
    assert list(cost.marker.size) == [7, 15]


def test_a_sweep_takes_in_its_plain_name_at_the_profiles_alpha():
    methods = ["rlhf", "ra_rlhf", "ra_rlhf@0.1", "ra_rlhf_ru"]
    assert sweep_families(methods) == {"ra_rlhf": {0.1: "ra_rlhf@0.1"}}
    assert sweep_families(methods, 0.4) == {"ra_rlhf": {0.1: "ra_rlhf@0.1", 0.4: "ra_rlhf"}}
    tables = {method: EPISODES["rlhf"] for method in methods}
    assert risk_explorer(tables, resamples=5, profile_alpha=0.4).trained.options == (0.1, 0.4)


def test_without_a_sweep_there_is_no_second_slider_and_perplexity_is_optional():
    tables = {method: EPISODES[method].drop(columns="kl") for method in ("sft", "rlhf")}
    widget = risk_explorer(tables, resamples=5)
    assert widget.price is None and widget.trained not in widget.children[0].children
    widget.alpha.value = 0.5
    likelihoods = pd.DataFrame({"log_likelihood": [-3.0, -8.0], "tokens": [2, 4]})
    swept = explorer(held_out={"ra_rlhf@0.4": likelihoods})
    expected = perplexity(likelihoods["log_likelihood"].to_numpy(), likelihoods["tokens"].to_numpy(), np.ones(2))
    assert swept.price.widget.data[6].y[1] == pytest.approx(expected) and np.isnan(swept.price.widget.data[6].y[0])


def other_seeds(**changes):
    """Two more training seeds of the sweep; the second lacks a method."""
    tables = {
        seed: {method: episodes(0.3 * number, seed * 10 + number) for number, method in enumerate(METHODS)}
        for seed in (2, 3)
    }
    del tables[3]["ra_rlhf@0.1"]
    return tables | changes


@pytest.mark.parametrize("ranking", ["reward", "prompt_score"])
def test_other_seeds_give_the_price_its_bands_at_every_measured_alpha(ranking):
    others = other_seeds()
    widget = explorer(other_seeds=others, ranking=ranking)
    keys = widget.ranking.value
    for alpha in (0.2, 0.63):
        widget.alpha.value = alpha
        band, line = widget.price.widget.data[:2]  # of ra_rlhf
        found = {0.1: [EPISODES, others[2]], 0.4: [EPISODES, others[2], others[3]]}
        intervals = [
            seed_interval(
                [
                    tail_mean(*(t[f"ra_rlhf@{at}"][key].to_numpy() for key in ("reward", keys)), alpha, np.ones(SIZE))
                    for t in tables
                ]
            )
            for at, tables in found.items()
        ]
        np.testing.assert_allclose(line.y, [interval.value for interval in intervals])
        outline = [intervals[0].low, intervals[1].low, intervals[1].high, intervals[0].high]
        np.testing.assert_allclose(band.y, outline)
        assert list(band.x) == [0.1, 0.4, 0.4, 0.1] and list(line.x) == [0.1, 0.4]


def test_other_seeds_change_nothing_but_the_price():
    plain, banded = explorer(), explorer(other_seeds=other_seeds())
    assert plain.table.value == banded.table.value and plain.texts.value == banded.texts.value
    assert len(banded.price.widget.data) == 2 * len(plain.price.widget.data)
    kl_line = banded.price.widget.data[9]  # the third panel: band and line of each of two sweeps
    kls = [t["ra_rlhf@0.1"]["kl"].mean() for t in (EPISODES, other_seeds()[2])]
    assert kl_line.y[0] == pytest.approx(np.mean(kls)) and list(kl_line.marker.size) == [15, 7]
    caption = banded.price.widget.layout.xaxis4.title.text
    assert caption.endswith("line: mean of 2 to 3 seeds; band: its 95 % interval")
    assert "seeds" not in plain.price.widget.layout.xaxis4.title.text
    alone = risk_explorer({"sft": EPISODES["sft"], "rlhf": EPISODES["rlhf"]}, resamples=5, other_seeds=other_seeds())
    assert alone.price is None


def test_the_perplexity_of_a_single_seed_has_no_band():
    likelihoods = pd.DataFrame({"log_likelihood": [-3.0, -8.0], "tokens": [2, 4]})
    widget = explorer(held_out={"ra_rlhf@0.4": likelihoods}, other_seeds=other_seeds())
    band, line = widget.price.widget.data[12:14]
    assert not len(band.x) and np.isfinite(line.y).tolist() == [False, True]
    assert "perplexity, shown seed only" in [note.text for note in widget.price.widget.layout.annotations]


def test_a_batch_run_shows_the_bands_too(monkeypatch):
    shown = []
    monkeypatch.setattr(go.Figure, "show", lambda figure: shown.append(figure))
    assert explorer(other_seeds=other_seeds(), interactive=False) is None
    assert len(shown) == 3 and sum(trace.fill == "toself" for trace in shown[2].data) == 6


def test_a_sweep_of_seven_alphas_and_1_moves_to_each():
    alphas = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
    tables = {f"{name}@{alpha:g}": EPISODES["rlhf"] for name in ("ra_rlhf", "ra_rlhf_ru") for alpha in alphas}
    widget = risk_explorer({"rlhf": EPISODES["rlhf"]} | tables, resamples=5, other_seeds={2: tables})
    assert widget.trained.options == alphas
    for place, alpha in enumerate(alphas):
        widget.trained.value = alpha
        assert [slot.method for slot in widget.exploration.shown(alpha)][1:] == [
            f"ra_rlhf@{alpha:g}",
            f"ra_rlhf_ru@{alpha:g}",
        ]
        assert list(widget.price.widget.data[1].marker.size).index(15) == place


def test_what_does_not_fit_is_named():
    with pytest.raises(UserError, match="different rows"):
        risk_explorer({"sft": EPISODES["sft"], "rlhf": EPISODES["rlhf"].iloc[::-1]})
    with pytest.raises(UserError, match="prompt_score"):
        risk_explorer(EPISODES, ranking="length")
    broken = EPISODES["ra_rlhf@0.1"].drop(columns="reward")
    with pytest.raises(
        UserError, match=r"other_seeds, seed 7: evaluation/ra_rlhf@0\.1\.parquet lacks the column reward"
    ):
        explorer(other_seeds={7: {"ra_rlhf@0.1": broken}})
    with pytest.raises(UserError, match="other_seeds, seed 7: episodes is empty"):
        explorer(other_seeds={7: {"sft": EPISODES["sft"]}})


# Hostile texts


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_stays_text(text):
    page = Tags(f"<b>{text_html(text)}</b><b>{hover_text(text)}</b>")
    assert page.tags <= {"b", "bdi", "details", "summary", "br"} and not page.attributes
    assert visible(text) in page.text
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u202e\u200f\u2067\u200b\ud800" for c in page.text)
    assert ("<details>" in text_html(text)) == (len(visible(text)) > SHORT)


def test_hostile_texts_are_text_in_every_widget():
    exported = {name for name in widgets.__all__ if name.islower()}
    known = {"live_training", "progress_table", "risk_explorer", "schedule_designer"}
    assert exported == known  # a new widget needs a hostile text here
    texts = [text.replace("\ud800", "") for text in HOSTILE * SIZE][:SIZE]  # a table cannot hold a lone surrogate
    hostile = "<script>window.hacked = 1</script>"
    tables = {
        method: EPISODES["rlhf"].assign(prompt=(texts[: SIZE // 2] * 2), completion=texts)
        for method in ("rlhf", hostile)
    }
    swept = {f"{hostile}@{alpha}": tables[hostile] for alpha in (0.2, 0.4)}
    explored = risk_explorer(tables | swept, resamples=5, alpha=1.0, other_seeds={2: swept})
    explored.anchor.value = f"{hostile}@0.2"
    trained = live_training(FakeTrainer.factory(texts=HOSTILE[:8]))
    trained.start()
    trained.join(30)
    assert trained.state == "done"
    errors = pd.DataFrame({"error": texts}, index=texts)
    followed = progress_table(lambda: Shown(hostile, errors, True))
    broken = progress_table(lambda: 1 / 0)
    assert "ZeroDivisionError" in broken.page.value
    pages = (explored.table.value, explored.texts.value, trained.samples.value, trained.status.value)
    for page in (*pages, followed.page.value, broken.page.value):
        found = Tags(page)
        assert found.tags <= OURS and found.attributes <= {"class"}
    hover = "".join(all_hovers(trained))
    assert Tags(hover).tags <= {"br"}
    names = [str(trace.name) for drawing in (explored.curve, explored.price) for trace in drawing.widget.data]
    assert not any("<" in name for name in names)
    assert all("<script" not in note.text for note in explored.distributions.widget.layout.annotations)


def all_hovers(trained) -> list[str]:
    return [text for trace in trained.batch.widget.data for text in trace.text]


# The schedule designer


def test_the_schedule_is_drawn_and_what_it_saves_is_its_area():
    widget = schedule_designer(SoftRiskSchedule(10, 0.5, 20, warm_start=5, rho=0.9))
    widget.alpha.value, widget.batch_size.value = 0.2, 40
    schedule = SoftRiskSchedule(40, 0.2, 20, warm_start=5, rho=0.9)
    line = widget.figure.widget.data[-1]
    np.testing.assert_allclose(line.y, [100 * schedule.kept(m) / 40 for m in range(1, 21)])
    assert list(line.customdata) == schedule.kept_counts()
    assert f"{100 * (1 - sum(schedule.kept_counts()) / 800):.1f} %" in widget.saved.value
    widget.along.value = "share"
    assert widget.figure.widget.data[-1].x[-1] == widget.figure.widget.data[0].x[-1] == 100
    assert widget.figure.widget.layout.xaxis.title.text == "share of the iterations (%)"
    assert saved_share(SoftRiskSchedule(10, 1.0, 20, warm_start=0, rho=1.0)) == 0


def test_settings_that_do_not_fit_together_are_named_and_not_drawn():
    widget = schedule_designer()
    before = list(widget.figure.widget.data[-1].y)
    widget.iterations.value = 20
    assert "warm_start = 30" in widget.saved.value and "error" in widget.saved.value
    assert list(widget.figure.widget.data[-1].y) == before
    widget.iterations.value = 194
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
            episodes=SimpleNamespace(prompts=prompts, completions=prompts),
        )
        lowest = np.argsort(rewards)[: tail_count(self.alpha, len(prompts))]
        self.selection = SimpleNamespace(tail=np.sort(lowest))
        return {}


def wait_for(condition):
    waited = threading.Event()
    for _ in range(1000):
        if condition():
            return
        waited.wait(0.01)
    raise AssertionError("it did not happen in 10 s")


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
    mean, tail = widget.curve.widget.data[-2:]
    assert list(mean.y) == [row["mean"] for row in rows(widget)] and tail.xaxis == "x2"
    assert list(tail.y) == [row["tail"] for row in rows(widget)]
    dropped, kept = widget.batch.widget.data
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


def test_another_setting_keeps_the_earlier_curve():
    widget = live_training(FakeTrainer.factory())
    widget.start()
    widget.join(20)
    first = list(widget.curve.widget.data[-2].y)
    widget.alpha.value, widget.seed.value, widget.estimator.value = 0.1, 7, "rockafellar_uryasev"
    widget.start()
    widget.join(20)
    assert list(widget.curve.widget.data[-4].y) == first and len(widget.curves) == 2
    names = [trace.name for trace in widget.curve.widget.data[-4::2]]
    assert names == ["1: tail, α 0.4, n 5, ρ 0.95, seed 1", "2: RU, α 0.1, n 5, ρ 0.95, seed 7"]
    assert widget.curve.widget.data[-4].line.color != widget.curve.widget.data[-2].line.color


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


def test_where_nobody_is_there_the_same_is_shown_as_figures_and_tables(monkeypatch):
    shown = []
    monkeypatch.setattr("plotly.graph_objects.Figure.show", lambda figure: shown.append(figure))
    for module in ("risk_explorer", "schedule_designer", "live_training"):
        # not imported by name, since the package exports functions of the same names
        monkeypatch.setattr(sys.modules[f"rarlhf_nb.showing.widgets.{module}"], "display", shown.append)
    assert not is_static() and is_static(interactive=False)
    monkeypatch.setenv("RARLHF_STATIC", "1")
    assert is_static()
    log = pd.DataFrame({key: [0.0, 1.0] for key in ("iteration", *TRAINING_PANELS)})
    assert explorer(alpha=0.2) is None and len(shown) == 5
    assert list(shown[0].data[2].x) == [var(EPISODES["sft"]["reward"], 0.2)] * 2
    assert "CVaR 20 %" in shown[3].data and "completion" in shown[4].data
    assert schedule_designer() is None and len(shown) == 7
    assert live_training(FakeTrainer.factory()) is None and len(shown) == 8
    assert live_training(FakeTrainer.factory(), earlier={"rlhf": log}) is None and len(shown) == 9


def test_all_widgets_can_be_imported_from_one_place():
    assert all(hasattr(widgets, name) for name in widgets.__all__)
