"""The soak in short: a run that is killed twice, once with all its processes, ends like one that was not."""

import pytest
from small_run import SMALL


def test_a_run_killed_at_random_moments_ends_like_one_that_was_not(tmp_path):
    from benchmarks.soak import soak

    settings = SMALL | {"ppo.iterations": 12, "evaluation.repeated_prompts": 0}
    words = [word for key, value in settings.items() for word in ("-p", key, str(value))]
    figures = soak(tmp_path, words, kills=2, seed=117, notebooks="0[12]_*")
    if not figures.get("kills"):
        pytest.fail(f"no kill met the run: {figures}")
    assert figures["different"] == [] and figures["files compared"] >= 15, figures
    assert figures["processes met"] > 1, figures
    assert figures["corrupt files"] == figures["orphans"] == 0, figures
