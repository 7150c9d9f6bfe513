"""Figures hold exactly the numbers of their tables, name their axes and units, and escape texts from data."""

import numpy as np
import pandas as pd
import pytest
from made_up import made_up_episodes

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.evaluation.metrics import seed_interval
from rarlhf_nb.lab.evaluation.report import build_report
from rarlhf_nb.lab.methods import METHODS
from rarlhf_nb.lab.plots import figures, sweep_figures
from rarlhf_nb.lab.plots.theme import SCHEDULE_COLORS, line_style, method_color
from rarlhf_nb.risk import SoftRiskSchedule, cvar

HOSTILE = "<script>alert(1)</script>"
ESCAPED = "&lt;script&gt;alert(1)&lt;/script&gt;"
RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=100)


def episodes(rewards, group="all"):
    return made_up_episodes(rewards, prompt_score=SCORES, label=[0, 1] * 50, group=["drama"] * 90 + [group] * 10)


EPISODES = {
    "ra_rlhf": episodes(SCORES + RNG.normal(size=100)),
    "rlhf": episodes(SCORES),
    HOSTILE: episodes(SCORES, HOSTILE),
}
TRAINING = {
    method: pd.DataFrame({"iteration": range(1, 21)} | {key: RNG.normal(size=20) for key in figures.TRAINING_PANELS})
    for method in ("rlhf", HOSTILE)
}
POINTS = pd.DataFrame(
    {
        "method": ["rlhf"] * 4 + [HOSTILE],
        "kl_coef": [0.1, 0.1, 0.4, 0.4, 0.1],
        "seed": [1, 2, 1, 2, 1],
        "kl": [4.0, 6.0, 1.0, 3.0, 2.0],
        "reward": [1.0, 2.0, 0.0, 1.0, 0.5],
        "cvar_10": [-1.0, 0.0, -3.0, -1.0, -0.5],
    }
)
SWEEP = pd.DataFrame(
    [
        {"method": method, "kl_coef": 0.2, "seed": seed, "kl": kl, "reward": reward, "cvar_10": tail}
        for method, kl, reward, tail in (
            ("rlhf", 2.0, 1.0, -3.0),
            ("ra_rlhf@1", 2.0, 1.0, -3.0),
            ("ra_rlhf@0.4", 4.0, 1.5, -2.0),
            ("ra_rlhf@0.2", 6.0, 2.0, -1.0),
            (f"{HOSTILE}@0.5", 3.0, 0.5, -3.5),
            (f"{HOSTILE}@0.3", 3.5, 0.0, -4.0),
        )
        for seed, kl, reward, tail in ((1, kl - 0.5, reward, tail - 0.5), (2, kl + 0.5, reward, tail + 0.5))
    ]
    * 2
)
REPORT = build_report(EPISODES, {}, tail_threshold=-1.0, cvar_levels=[0.1], resamples=50)
CLUSTERS = pd.DataFrame(
    {"x": [0.0, 1, 2], "y": [0.0, 1, 0], "cluster": [0, 0, 1], "prompt": HOSTILE, "prompt_score": [-1.0, -2.0, -3.0]}
)


def traces(figure, name):
    return [trace for trace in figure.data if trace.name == name]


def all_figures():
    return {
        "prompts": figures.prompt_score_histogram(EPISODES[HOSTILE], tail_threshold=-1.0),
        "shift": figures.distribution_shift(EPISODES["rlhf"], EPISODES),
        "quantiles": figures.quantile_curves(EPISODES),
        "cvar": figures.cvar_curves(EPISODES, resamples=20),
        "training": figures.training_curves(TRAINING),
        "schedule": figures.schedule_figure({HOSTILE: SoftRiskSchedule(10, 0.5, 10, 2, 0.8)}),
        "frontier": sweep_figures.frontier(POINTS),
        "frontier over alpha": sweep_figures.frontier(SWEEP),
        "alphas": sweep_figures.alpha_curves(SWEEP),
        "metrics": figures.metric_intervals(REPORT, ["reward", "cvar_10", "no_such_metric"]),
        "seeds": figures.seed_scores(POINTS, "reward", "mean reward (logit)"),
        "clusters": figures.tail_clusters(CLUSTERS),
    }


def test_every_figure_escapes_texts_and_names_itself_its_axes_and_its_panels():
    for name, figure in all_figures().items():
        text = figure.to_json().replace("\\u0026", "&").replace("\\u003c", "<")
        assert "script&gt;" in text and "<script" not in text, name
        assert figure.layout.title.text, name
        panels = list(figure.select_yaxes())
        titled = len(figure.layout.annotations) == len(panels)
        methods = name in ("metrics", "seeds")  # their y axis names the methods
        assert all(axis.title.text for axis in panels) or titled or methods, name
        assert any(axis.title.text for axis in figure.select_xaxes()) or titled, name


@pytest.mark.parametrize(
    ("tail", "title"),
    [("cvar_10", "CVaR 10 % of reward"), ("cvar_5", "CVaR 5 % of reward"), ("tail_reward", "tail reward")],
)
def test_frontier_shows_the_tail_that_was_measured_with_its_unit(tail, title):
    shown = sweep_figures.frontier(POINTS.rename(columns={"cvar_10": tail})).layout
    assert shown.yaxis2.title.text == f"{title} (logit)"
    assert shown.xaxis.title.text == "KL from the SFT policy (nats per completion)"


def test_quantile_curves_are_the_papers_at_whole_percents():
    tail, whole = traces(figures.quantile_curves(EPISODES), "RA-RLHF")
    percents = np.arange(1, 101)  # of 100 prompts
    means = np.cumsum(EPISODES["ra_rlhf"]["reward"].to_numpy()[np.argsort(SCORES)]) / percents
    np.testing.assert_allclose(whole.x, percents)
    np.testing.assert_allclose(whole.y, means)
    assert tail.x[0] == pytest.approx(1) and tail.x[-1] == pytest.approx(20)
    assert (tail.y[0], tail.y[-1]) == pytest.approx((means[0], means[19]))


def test_cvar_curves_hold_cvar_and_their_band_encloses_it():
    figure = figures.cvar_curves({"rlhf": EPISODES["rlhf"]}, resamples=200)
    band, line = figure.data
    np.testing.assert_allclose(line.y, [cvar(SCORES, min(alpha / 100, 1)) for alpha in line.x])
    assert line.y[-1] == pytest.approx(SCORES.mean())
    low, high = np.split(np.asarray(band.y), 2)
    assert (low <= high[::-1]).all()
    assert low[-1] < line.y[-1] < high[0]


def test_histograms_count_every_row_once_on_common_bins():
    figure = figures.distribution_shift(EPISODES["rlhf"].assign(reward=np.nan), EPISODES)
    assert sum(trace.x.sum() for trace in figure.data) == 400  # prompts and three methods
    assert len({tuple(trace.y) for trace in figure.data}) == 1
    assert [trace.name for trace in figure.data if trace.showlegend] == ["negative text", "positive text"]
    assert f"RLHF<br>{SCORES.mean():.2f}" in [note.text for note in figure.layout.annotations]
    assert {shape.y0 for shape in figure.layout.shapes} == {
        EPISODES[method]["reward"].mean() for method in ("rlhf", "ra_rlhf")
    }
    prompts = figures.prompt_score_histogram(EPISODES[HOSTILE], tail_threshold=-1.0)
    assert sum(trace.y.sum() for trace in prompts.data) == 100
    assert {shape.x0 for shape in prompts.layout.shapes} == {-1.0}
    ratings = EPISODES["rlhf"].assign(label=pd.array([None, 0, 1, -1, 5] * 20), group="all")
    counts = {trace.name: trace.y.sum() for trace in figures.prompt_score_histogram(ratings).data}
    assert counts == {
        "negative text": 20,
        "positive text": 20,
        "unlabelled text": 20,
        "text of another label": 40,
    }


def test_the_wanted_texts_are_the_positive_ones_whatever_their_label():
    toxic = EPISODES["rlhf"].assign(label=pd.array([1] * 10 + [0] * 85 + [None] * 5), group="all")
    for figure in (
        figures.prompt_score_histogram(toxic, positive_label=0),
        figures.distribution_shift(toxic, {}, positive_label=0),
    ):
        counts = {trace.name: sum(trace.y if trace.orientation == "v" else trace.x) for trace in figure.data}
        assert counts == {"negative text": 10, "positive text": 85, "unlabelled text": 5}


def test_training_curves_show_the_iterations_and_do_not_smooth_what_was_set():
    figure = figures.training_curves(TRAINING)
    assert len(figure.data) == 2 * 2 * len(figures.TRAINING_PANELS)
    shown = traces(figure, "RLHF")
    raw = dict(zip(figures.TRAINING_PANELS, shown[:8], strict=True))
    smooth = dict(zip(figures.TRAINING_PANELS, shown[8:], strict=True))
    for key in figures.TRAINING_PANELS:
        np.testing.assert_array_equal(raw[key].y, TRAINING["rlhf"][key])
    np.testing.assert_array_equal(smooth["kl_coef"].y, TRAINING["rlhf"]["kl_coef"])
    assert np.std(smooth["kl"].y) < np.std(raw["kl"].y)
    assert sum(bool(trace.showlegend) for trace in figure.data) == 2
    assert not figures.training_curves({"quark": pd.DataFrame({"step": [1, 2]})}).data


def test_schedule_figure_counts_from_one():
    schedule = SoftRiskSchedule(batch_size=128, alpha=0.4, iterations=194, warm_start=30, rho=0.95)
    (trace,) = figures.schedule_figure({"IMDB-Gen": schedule}).data
    kept = dict(zip(trace.x, trace.customdata, strict=True))
    assert {m: kept[m] for m in (1, 50, 100, 184, 194)} == {1: 128, 50: 119, 100: 94, 184: 52, 194: 52}
    assert trace.y[-1] == 100 * 52 / 128


def test_frontier_joins_the_means_of_the_seeds():
    dots, line = sweep_figures.frontier(POINTS).data[:2]
    assert list(dots.x) == [4.0, 6.0, 1.0, 3.0]
    assert (list(line.x), list(line.y)) == ([5.0, 2.0], [1.5, 0.5])
    assert list(traces(sweep_figures.frontier(POINTS), "RLHF")[3].y) == [-0.5, -2.0]


def test_frontier_joins_the_alphas_of_a_sweep_from_the_smallest_to_rlhf():
    figure = sweep_figures.frontier(SWEEP)
    assert [trace.name for trace in figure.data if trace.showlegend] == ["RLHF", "RA-RLHF over α", f"{ESCAPED} over α"]
    reward, tail = traces(figure, "RA-RLHF over α")
    assert (list(reward.x), list(reward.y)) == ([6.0, 4.0, 2.0], [2.0, 1.5, 1.0])
    assert list(tail.y) == [-1.0, -2.0, -3.0] and list(tail.text) == ["0.2", "0.4", ""]
    assert list(tail.marker.color) == [method_color(method) for method in ("ra_rlhf@0.2", "ra_rlhf@0.4", "rlhf")]
    seeds = {name: sorted(x for t in traces(figure, name)[:1] for x in t.x) for name in ("RLHF", "RA-RLHF α 0.2")}
    assert seeds == {"RLHF": [1.5, 2.5], "RA-RLHF α 0.2": [5.5, 6.5]}  # once, although a run repeats them


def test_frontier_over_alpha_and_kl_coef_draws_the_longer_way():
    more_kl = SWEEP.assign(kl_coef=0.1, kl=SWEEP["kl"] + 10)
    both = pd.concat([SWEEP, more_kl])
    wide = pd.concat([both, both.replace({"method": {"ra_rlhf@0.4": "ra_rlhf@0.1"}})])
    over_alpha = traces(sweep_figures.frontier(wide), "RA-RLHF over α")
    assert [len(trace.x) for trace in over_alpha] == [4] * 4  # two kl_coefs in two panels, three alphas and RLHF
    assert any(over_alpha[0].text) and not any(over_alpha[1].text)
    betas = [list(t.text) for t in sweep_figures.frontier(wide).data if t.mode == "text"]
    assert betas == [["β 0.1", "β 0.2"]] * 2
    over_beta = sweep_figures.frontier(both)  # as many kl_coefs as alphas
    assert not traces(over_beta, "RA-RLHF over α") and len(traces(over_beta, "RA-RLHF α 0.2")[1].x) == 2


def test_alpha_curves_end_at_rlhf_and_their_band_is_the_t_interval():
    figure = sweep_figures.alpha_curves(SWEEP)
    cvar_line, reward_line, kl_line = traces(figure, "RA-RLHF")
    assert list(cvar_line.x) == [0.2, 0.4, 1.0] and list(cvar_line.y) == [-1.0, -2.0, -3.0]
    assert (list(reward_line.y), list(kl_line.y)) == ([2.0, 1.5, 1.0], [6.0, 4.0, 2.0])
    assert kl_line.xaxis == "x3" and [dot.y[0] for dot in traces(figure, "RLHF (α 1)")] == [-3.0, 1.0, 2.0]
    band = next(trace for trace in figure.data if trace.fill and trace.legendgroup == "RA-RLHF")
    low, high = seed_interval([-1.5, -0.5])[1:]
    assert list(band.x) == [0.2, 0.4, 1.0, 1.0, 0.4, 0.2] and (band.y[0], band.y[-1]) == pytest.approx((low, high))
    one = sweep_figures.alpha_curves(SWEEP[SWEEP["seed"] == 1])
    assert not any(len(trace.x) for trace in one.data if trace.fill) and len(traces(one, "RA-RLHF")[0].x) == 3


def test_the_conditioned_policy_has_an_alpha_1_of_its_own():
    own = SWEEP[SWEEP["method"] == "rlhf"].assign(method="conditioned@1", kl=9.0)
    figure = sweep_figures.alpha_curves(pd.concat([SWEEP, own, own.assign(method="conditioned@0.1", kl=10.0)]))
    line = traces(figure, "Conditioned")[2]
    assert list(line.x) == [0.1, 1.0] and list(line.y) == [10.0, 9.0]
    assert [dot.y[0] for dot in traces(figure, "RLHF (α 1)")] == [-3.0, 1.0, 2.0]


def test_alpha_curves_want_one_setting():
    with pytest.raises(UserError, match=r"kl_coef has 2 values.*scores\[scores\['kl_coef'\] == 0.2\]"):
        sweep_figures.alpha_curves(pd.concat([SWEEP, SWEEP.assign(kl_coef=0.4)]))


def test_interval_bars_reach_from_low_to_high():
    (dot,) = [trace for trace in figures.metric_intervals(REPORT, ["cvar_10"]).data if trace.y[0] == "RLHF"]
    value, low, high = REPORT.of("cvar_10").loc["rlhf"]
    assert (dot.x[0], dot.error_x.array[0], dot.error_x.arrayminus[0]) == pytest.approx(
        (value, high - value, value - low)
    )


def test_seed_scores_show_every_seed_and_the_t_interval():
    figure = figures.seed_scores(POINTS.iloc[:2], "reward", "mean reward (logit)")
    mean, seeds = figure.data
    assert list(seeds.x) == [1.0, 2.0] and mean.x[0] == 1.5
    assert mean.error_x.array[0] == pytest.approx(seed_interval([1.0, 2.0]).high - 1.5)


def test_methods_look_different_everywhere():
    sweeps = [f"{method}@{alpha}" for method in ("ra_rlhf", "ra_rlhf_ru") for alpha in (0.1, 0.2, 0.4)]
    colors = [method_color(method) for method in [*METHODS, *sweeps]]
    assert len(set(colors)) == len(colors)
    assert len({line_style(sweep)["dash"] for sweep in sweeps}) == 3
    assert not set(SCHEDULE_COLORS) & set(colors)
