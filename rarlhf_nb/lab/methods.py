"""The methods that are compared: the name of each, its colour in every figure, and the notebook that produces it.

A method's files in a run folder are named after its key, which users type: `ra_rlhf@0.2` is `ra_rlhf` trained at
alpha = 0.2. The policy of `conditioned` is trained for every alpha at once, and `conditioned@0.2` is this policy when
it acts for alpha = 0.2.
"""

from collections.abc import Iterable
from typing import NamedTuple

from rarlhf_nb.errors import UserError
from rarlhf_nb.risk import check_alpha

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


class MethodKey(NamedTuple):
    """A method, and its alpha if that is not the profile's; as text it is the name of its files."""

    name: str
    alpha: float | None = None

    @classmethod
    def parse(cls, text: str) -> "MethodKey":
        """The key that was written as `text`; what follows an @ is part of the name unless it is a tail share.

        Raises `UserError` if it is no text.
        """
        if not isinstance(text, str):
            raise UserError(f"method = {text!r}: give one method by its key, such as 'ra_rlhf'.")
        name, _, share = text.rpartition("@")
        try:
            return cls(name, check_alpha(float(share))) if name else cls(text)
        except ValueError:
            return cls(text)

    def __str__(self) -> str:
        return self.name if self.alpha is None else f"{self.name}@{self.alpha:g}"

    @property
    def method(self) -> Method:
        """A policy of the user's own is named after its key, and no notebook makes it."""
        return METHODS.get(self.name, Method(self.name, OTHER_COLOR, notebook=""))

    @property
    def title(self) -> str:
        """The name in figures and tables, such as "RA-RLHF α 0.2"; an alpha of more than three digits is rounded."""
        if self.alpha is None:
            return self.method.name
        written = self.alpha == float(f"{self.alpha:.3g}")
        return f"{self.method.name} α {self.alpha:g}" if written else f"{self.method.name} α {self.alpha:.2g}"

    @property
    def policy(self) -> str:
        """The folder of the policy: `conditioned@0.2` lies in `conditioned`, as the policy for every other alpha."""
        return CONDITIONED if self.name == CONDITIONED else str(self)


def method_name(key: str) -> str:
    """`MethodKey.title` of a key as tables hold it."""
    return MethodKey.parse(key).title


def method_order(keys: Iterable[str]) -> list[str]:
    """The keys in the order of `METHODS`, then unknown ones; each is followed by its sweep, in descending alpha."""
    known = list(METHODS)

    def position(key: str) -> tuple:
        name, alpha = MethodKey.parse(key)
        return known.index(name) if name in known else len(known), name, alpha is not None, -(alpha or 0)

    return sorted(keys, key=position)
