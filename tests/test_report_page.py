"""report.html: one file that opens with the finding, escapes every text and fetches nothing."""

import re

import numpy as np
import pandas as pd
from made_up import made_up_episodes

from rarlhf_nb.lab.evaluation.report import build_report, wide
from rarlhf_nb.lab.evaluation.tables import Tables
from rarlhf_nb.lab.plots.figures import TRAINING_PANELS
from rarlhf_nb.lab.profiles import load_profile
from rarlhf_nb.lab.report_page import build_page

HOSTILE = "<script>window.hit = 1</script><img src=x onerror='window.hit = 1'></div>"


def page(seeds=1):
    rng = np.random.default_rng(0)
    columns = {"prompt": [f"{HOSTILE} {i}" for i in range(30)], "completion": HOSTILE}
    columns |= {"prompt_score": rng.normal(size=30), "group": ["all"] * 25 + [HOSTILE] * 5, "kl": 1.0}
    episodes = {method: made_up_episodes(rng.normal(size=30), **columns) for method in ("sft", "rlhf")}
    report = build_report(episodes, {}, tail_threshold=-1.0, cvar_levels=[0.1], resamples=50)
    log = pd.DataFrame({"iteration": range(1, 6)} | {key: np.arange(5.0) for key in TRAINING_PANELS})
    tables = Tables(episodes, {}, {"rlhf": log, "quark": log[["iteration"]]}, {})
    one = wide(report.own, "value").reset_index(names="method").assign(run="a", seed=1, kl_coef=0.2)
    scores = pd.concat([one, one.assign(run="b", seed=2)]) if seeds > 1 else one
    return build_page(f"run {HOSTILE}", load_profile("pocket-imdb"), tables, report, scores), report


def test_the_page_holds_the_report_and_escapes_what_is_data():
    text, report = page()
    assert report.main().loc["RLHF", "reward"] in text and "no: differs in policy, reward model, " in text
    assert text.count("Plotly.newPlot(") >= 5
    assert HOSTILE not in text and "<script>window" not in text and "<img src=x" not in text
    assert "&lt;script&gt;window.hit" in text


def test_the_page_opens_with_the_finding_one_figure_and_the_main_table():
    text, report = page()
    places = [text.index(part) for part in (report.finding(), "Plotly.newPlot(", "<td>" + report.main().iloc[0, 0])]
    assert places == sorted(places)
    drawn = [part.split(",", 1)[1].partition("</script>")[0] for part in text.split("Plotly.newPlot(")[1:]]
    assert len(set(drawn)) == len(drawn)


def test_a_run_alone_says_nothing_of_seeds_and_several_do():
    assert "Over seeds and settings" not in page()[0]
    text, _ = page(seeds=2)
    assert "Over seeds and settings" in text and "Pairs of RL methods" not in text  # there is one RL method only
    assert HOSTILE not in text


def test_the_page_asks_for_nothing():
    text, _ = page()
    assert "default-src 'none'" in text
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=[\"']?(https?:)?//", text)
