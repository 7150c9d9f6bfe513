"""The methods that are compared: the name of each, its colour in every figure, and the notebook that produces it.

A method's files in a run folder are named after its key. In a sweep, the key includes the tail share of the training:
`ra_rlhf@0.2` is `ra_rlhf` trained at alpha = 0.2. The policy of `conditioned` is trained for every alpha at once, and
`conditioned@0.2` is this policy when it acts for alpha = 0.2.
"""

from collections.abc import Iterable
from typing import NamedTuple

DATA_NOTEBOOK, SFT_NOTEBOOK, RISK_NOTEBOOK = "01_data_prep", "02_baseline_rlhf", "03_ra_rlhf"
BASELINES_NOTEBOOK, ANALYSIS_NOTEBOOK, EXPLORER_NOTEBOOK = "04_other_baselines", "05_analysis", "06_alpha_explorer"
CONDITIONED = "conditioned"


class Method(NamedTuple):
    """How a method is presented."""

    name: str
    color: str
    notebook: str
    trained: bool = True  # whether it leaves a policy in the run folder


# In the order of every table and figure. The colours, those of Okabe and Ito and six more, can be told apart with any
# colour vision; a brown would look like a sweep of RA-RLHF.
METHODS = {
    "base": Method("Base", "#8A8A8A", SFT_NOTEBOOK, trained=False),
    "prompted": Method("Prompted", "#CC79A7", BASELINES_NOTEBOOK),
    "sft": Method("SFT", "#E69F00", SFT_NOTEBOOK),
    "dexperts": Method("DExperts", "#56B4E9", BASELINES_NOTEBOOK),
    "best_of_n": Method("Best-of-n", "#000000", BASELINES_NOTEBOOK, trained=False),
    "quark": Method("Quark", "#5D3A9B", BASELINES_NOTEBOOK),
    "rlhf": Method("RLHF", "#0072B2", SFT_NOTEBOOK),
    "ra_rlhf": Method("RA-RLHF", "#D55E00", RISK_NOTEBOOK),
    "ra_rlhf_ru": Method("RA-RLHF (RU)", "#009E73", RISK_NOTEBOOK),
    CONDITIONED: Method("Conditioned", "#A89000", RISK_NOTEBOOK),
    "grpo": Method("GRPO", "#89C476", BASELINES_NOTEBOOK),
    "cvar_grpo": Method("CVaR-GRPO", "#9D00EB", BASELINES_NOTEBOOK),
    "rloo": Method("RLOO", "#D8B1B1", BASELINES_NOTEBOOK),
    "cvar_rloo": Method("CVaR-RLOO", "#3B004E", BASELINES_NOTEBOOK),
}
OTHER_COLOR = "#444444"
CRITIC_FREE = ("grpo", "cvar_grpo", "rloo", "cvar_rloo")
RISK_AVERSE = ("ra_rlhf", "ra_rlhf_ru", "cvar_grpo", "cvar_rloo")  # their training depends on alpha
RISK_NEUTRAL = ("rlhf", "grpo", "rloo")  # the same at alpha = 1


def find_method(key: str) -> Method:
    """The method with this key, with or without a sweep's alpha.

    A policy of the user's own is named after its key, and no notebook makes it.
    """
    base, _ = split_alpha(key)
    return METHODS.get(base, Method(base, OTHER_COLOR, notebook=""))


def split_alpha(key: str) -> tuple[str, float | None]:
    """Split a key: `ra_rlhf@0.2` -> ("ra_rlhf", 0.2); alpha is None if the key has none, as in the name `a@b`."""
    base, at, share = key.rpartition("@")
    try:
        alpha = float(share) if at else 0.0
    except ValueError:
        alpha = 0.0
    return (base, alpha) if 0 < alpha <= 1 else (key, None)


def policy_name(key: str) -> str:
    """The folder of a method's policy: `conditioned@0.2` lies in `conditioned`, as the policy for every other alpha."""
    base, _ = split_alpha(key)
    return CONDITIONED if base == CONDITIONED else key


def sweep_key(base: str, alpha: float) -> str:
    """The key of a method in a sweep: ("ra_rlhf", 0.2) -> `ra_rlhf@0.2`."""
    return f"{base}@{alpha:g}"


def method_name(key: str) -> str:
    """The name of a method in figures and tables: `ra_rlhf@0.2` is "RA-RLHF α 0.2"."""
    _, alpha = split_alpha(key)
    return find_method(key).name + ("" if alpha is None else f" α {alpha:g}")


def method_order(keys: Iterable[str]) -> list[str]:
    """The keys in the order of `METHODS`, then unknown ones; each is followed by its sweep, in descending alpha."""
    known = list(METHODS)

    def position(key: str) -> tuple:
        base, alpha = split_alpha(key)
        return known.index(base) if base in known else len(known), base, alpha is not None, -(alpha or 0)

    return sorted(keys, key=position)
