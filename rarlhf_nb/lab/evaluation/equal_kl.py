"""What a method gains at equal KL: the part of its lead that is not bought with less regularisation."""

import numpy as np
import pandas as pd
from scipy import special

from rarlhf_nb.lab.evaluation.metrics import Interval


def gain_at_equal_kl(scores: pd.DataFrame, metric: str, method: str, baseline: str) -> Interval:
    """Method minus baseline at equal KL: d in metric = a(seed) + b √KL + d [method], with its 95 % t interval.

    Fitted by least squares to all runs of the two methods that have a value. Rewards are close to a straight line in
    √KL (Gao, Schulman and Hilton 2023, "Scaling laws for reward model overoptimization"), and the line is taken to be
    equally steep for both. scores: columns seed, method, kl (nats) and the metric. NaN where the runs are too few, and
    where the two methods have no KL in common.
    """
    runs = scores[scores["method"].isin([method, baseline])].dropna(subset=["kl", metric])
    ours, kl = (runs["method"] == method).to_numpy(), runs["kl"].to_numpy(dtype=float)
    if not ours.any() or ours.all() or max(kl[ours].min(), kl[~ours].min()) > min(kl[ours].max(), kl[~ours].max()):
        return Interval(np.nan, np.nan, np.nan)
    others = np.column_stack([np.sqrt(kl.clip(min=0)), pd.get_dummies(runs["seed"])]).astype(float)
    terms = np.column_stack([ours, others])
    rank = np.linalg.matrix_rank(terms)
    freedom = len(runs) - rank
    if freedom == 0 or rank == np.linalg.matrix_rank(others):
        return Interval(np.nan, np.nan, np.nan)
    inverse, values = np.linalg.pinv(terms), runs[metric].to_numpy(dtype=float)
    fitted = inverse @ values
    gain = float(fitted[0])
    variance = np.square(values - terms @ fitted).sum() / freedom
    half = float(special.stdtrit(freedom, 0.975) * np.sqrt(variance) * np.linalg.norm(inverse[0]))
    return Interval(gain, gain - half, gain + half)
