#!/usr/bin/env bash
# Surprise: scipy's bootstrap of two samples gives another interval when `batch`, a setting of memory, is another.
# Guess: with the same seed, `batch` says how many resamples are held at once, and changes nothing else.
# Versions: scipy 1.17.1, numpy 2.4.6
# Behaviour: each batch draws first for one sample, then for the other, so that the stream is dealt out otherwise. With one
#   sample, or paired ones, the result does not depend on it.
# Seen:
#   two samples: batch 999 [-0.810, 0.039], 100 [-0.810, 0.072], 50 [-0.839, 0.029]
#   paired:      batch 999 [-0.922, 0.116], 100 [-0.922, 0.116], 50 [-0.922, 0.116]
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

python_with scipy==1.17.1 numpy==2.4.6 <<'PYTHON'
import numpy as np
from scipy.stats import bootstrap

draw = np.random.default_rng(0)
samples = draw.normal(size=30), draw.normal(size=30)


def difference(one, two, axis):
    return one.mean(axis) - two.mean(axis)


different = {}
for paired in (False, True):
    found = {}
    for batch in (999, 100, 50):
        settings = dict(n_resamples=999, method="percentile", rng=1, paired=paired, batch=batch)
        found[batch] = tuple(bootstrap(samples, difference, **settings).confidence_interval)
    intervals = ", ".join(f"{batch} [{low:.3f}, {high:.3f}]" for batch, (low, high) in found.items())
    print("paired:" if paired else "two samples:", "batch", intervals)
    different[paired] = len(set(found.values()))
assert different == {False: 3, True: 1}, f"behaviour changed: {different} different intervals"
PYTHON
