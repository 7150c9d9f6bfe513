"""A run on each pocket task of toxicity, from the data to the ledger; the other tests run on film reviews."""

import pytest
from small_run import SMALL

from rarlhf_nb.lab.experiment import Experiment

METHODS = ["sft", "rlhf", "ra_rlhf"]


@pytest.mark.parametrize(
    ("profile", "published"), [("pocket-jigsaw", {"jigsaw-gpt2", "jigsaw-gptj"}), ("pocket-rtp", {"rtp-gpt2"})]
)
def test_a_run_rewards_civility_and_reports_toxicity(checkout, profile, published):
    experiment = Experiment.open(profile, overrides=SMALL)
    assert experiment.prepare_data() == []
    test, civil = experiment.data("test"), experiment.profile.task.positive_label
    scores = test.groupby("label")["prompt_score"].mean()
    assert scores[civil] > 0.3 > -0.3 > scores[1 - civil]
    texts = experiment.data("sft")["text"].tolist()
    assert (sum(experiment.reward().score(texts)) / len(texts)) > scores[civil]

    experiment.train_sft()
    for method in METHODS:
        if method != "sft":
            assert len(experiment.train(method)) == SMALL["ppo.iterations"]
        episodes = experiment.evaluate(method)
        assert episodes[["reward", "normalised_reward"]].corr("spearman").iloc[0, 1] > 0.95
    report = experiment.report()
    for metric in ("expected_maximum_toxicity", "toxicity_probability"):
        assert list(report.of(metric).index) == METHODS and report.of(metric)["value"].notna().all()
    assert set(experiment.ledger(report)["published_for"]) == published
