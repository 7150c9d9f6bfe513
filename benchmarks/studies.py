"""The studies of docs/results, each a set of ways to train that are compared over seeds.

    python -m benchmarks.studies NAME run OUTPUT [PROFILE …]   (skips what is finished)
    python -m benchmarks.studies NAME report OUTPUT            (tables as Markdown; writes runs.csv beside the runs)

NAME is one of STUDIES. Hours on one idle core: estimators 2, repairs 6, regime 5, ru_cost 0.7, conditioned 1,
critic_free 1, departures 1. No setting was chosen on the seeds of a study, nor on test prompts.
"""

import sys
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

from benchmarks import ways
from benchmarks.study import RLHF, Start, Study, Trained, Way, by_ppo, the_kept, without_critic
from rarlhf_nb.conditioned import AlphaConditionedTrainer

BOTH = ("iterations", "compute")
POCKETS = ("pocket-imdb", "pocket-jigsaw")
TAIL, RU = "ra_rlhf@0.2", "ra_rlhf_ru@0.2"


def on_tail(method: str = TAIL, **changes: object) -> Way:
    """A way whose update takes the kept episodes alone."""
    return Way(method, **{"updated": the_kept, "budgets": BOTH} | changes)


def over_beta(found: dict[str, Way], *values: float) -> dict[str, Way]:
    """The same ways at further values of beta, by which `equal_kl` tells a lead from less regularisation."""
    return found | {
        f"{title}, β {beta:g}": replace(
            way,
            overrides=way.overrides | {"ppo.kl_coef": beta, "critic_free.kl_coef": beta},
            budgets=("iterations",),
        )
        for beta, (title, way) in product(values, found.items())
    }


ESTIMATORS = over_beta(
    RLHF
    | {f"tail selection, α {alpha:g}": on_tail(f"ra_rlhf@{alpha:g}") for alpha in (0.4, 0.2)}
    | {f"RU, α {alpha:g}": Way(f"ra_rlhf_ru@{alpha:g}") for alpha in (0.4, 0.2)},
    0.1,
    0.4,
    0.8,
)

REPAIRS = over_beta(RLHF, 0.05, 0.1, 0.4) | {
    "tail selection, the paper's": on_tail(),
    "Rockafellar–Uryasev": Way(RU),
    "(a) whitened on all, critic on all": Way(TAIL, train=partial(by_ppo, trainer=ways.CriticOnAll)),
    "(b) whitened on all": on_tail(overrides={"risk.whitening": "batch"}),
    "(c) dropped episodes held by their KL": Way(TAIL, train=partial(by_ppo, trainer=ways.DroppedHeld)),
    "(d) the CVaR gradient, eq. 7": on_tail(
        overrides={"ppo.vf_coef": 0.0}, train=partial(by_ppo, trainer=ways.CVaRGradient)
    ),
    "(e) ranked by the prompt's value": on_tail(train=partial(by_ppo, trainer=ways.RankedByPrompt)),
    "(f) B/α sampled, B updated": Way(
        TAIL, train=partial(by_ppo, trainer=ways.LargerBatch), sampled=ways.sampled_for, budgets=("compute",)
    ),
}

REGIME = {  # of the paper's IMDB-Gen
    "ppo.iterations": 194,
    "ppo.kl_target": 6.0,
    "ppo.kl_horizon": 10_000,
    "risk.warm_start": 30,
    "risk.rho": 0.95,
}


def with_share(share: float, draw: str = "") -> Way:
    """RU with a share of the episodes above VaR in its update."""
    trainer = {"": by_ppo, "uniformly": partial(by_ppo, trainer=ways.DrawnUniformly)}[draw]
    updated, budgets = partial(ways.with_share, share), BOTH if draw and share > 0.1 else ("iterations",)
    return Way(RU, {"risk.above_share": share}, trainer, updated, budgets=budgets)


RU_COST = RLHF | {
    "RU, every episode": Way(RU),
    "RU, share 0.25": with_share(0.25),
    "RU, share 0.5 drawn uniformly": with_share(0.5, "uniformly"),
    "RU, share 0.25 drawn uniformly": with_share(0.25, "uniformly"),
    "RU, share 0.1 drawn uniformly": with_share(0.1, "uniformly"),
    "RU, the tail alone": Way(RU, train=partial(by_ppo, trainer=ways.TailAlone), updated=the_kept),
}

ALPHAS = (1.0, 0.4, 0.2, 0.1)


def conditioned(start: Start) -> Trained:
    """Train one policy for every alpha, with twice the iterations, and take it at four of them."""
    profile, settings = start.profile, start.profile.conditioned.model_copy(update={"alpha_min": 0.1, "groups": 4})
    made = AlphaConditionedTrainer(
        start.policy,
        start.reward,
        profile.ppo,
        start.risk,
        profile.sampling,
        settings,
        reference=start.reference,
        train_dataset=start.prompts,
        seed=start.seed,
    )
    log = made.train()
    return Trained({f"α {alpha:g}": made.policy.at(alpha) for alpha in ALPHAS}, log)


CONDITIONED = (
    RLHF
    | {f"RU, α {alpha:g}": Way(f"ra_rlhf_ru@{alpha:g}") for alpha in ALPHAS[1:]}
    | {"conditioned": Way("ra_rlhf_ru", train=conditioned)}
)


def critic_free(algorithm: str, estimator: str, tail: str) -> Way:
    """GRPO or RLOO on the tail.

    RLOO keeps its KL in the advantage that `cvar_gradient` replaces, so there beta is 0.
    """
    settings = {"critic_free.estimator": estimator, "critic_free.tail": tail}
    if (algorithm, estimator) == ("rloo", "cvar_gradient"):
        settings["critic_free.kl_coef"] = 0.0
    return Way("ra_rlhf", settings, partial(without_critic, algorithm=algorithm), than=algorithm.upper())


PLAIN = {name: Way("rlhf", train=partial(without_critic, algorithm=name.lower())) for name in ("GRPO", "RLOO")}
CRITIC_FREE = (
    over_beta(RLHF | PLAIN, 0.05, 0.1)
    | {"RA-RLHF": on_tail("ra_rlhf", budgets=("iterations",)), "RA-RLHF (RU)": Way("ra_rlhf_ru")}
    | {
        f"CVaR-{name}, {estimator.replace('_', ' ')}, {tail}": critic_free(name.lower(), estimator, tail)
        for name, estimator, tail in product(
            PLAIN, ("tail_selection", "rockafellar_uryasev", "cvar_gradient"), ("batch", "prompt")
        )
    }
)
TWELVE = {"ppo.iterations": 12, "risk.warm_start": 2, "critic_free.iterations": 12, "critic_free.kl_coef": 0.2}

PAPER = on_tail("ra_rlhf", budgets=("iterations",), than="RA-RLHF as in the paper")
DEPARTURES = (
    RLHF
    | {
        "RA-RLHF as in the paper": replace(PAPER, than="RLHF"),
        "schedule counted from 0": replace(PAPER, overrides={"risk.warm_start": 7}),
        "the released script's α 0.2, ρ 0.9": replace(PAPER, overrides={"risk.alpha": 0.2, "risk.rho": 0.9}),
        "RLHF from the base model": Way("rlhf", from_base=True),
    }
    | {
        f"n {n}, α {alpha}, ρ {rho}": replace(
            PAPER, overrides={"risk.warm_start": n, "risk.alpha": alpha, "risk.rho": rho}, than="RLHF"
        )
        for n, alpha, rho in [(1, 0.4, 0.95), (6, 0.4, 0.95), (6, 0.3, 0.95), (6, 0.2, 0.95), (6, 0.4, 0.5)]
    }
)

STUDIES = {
    "estimators": Study(ESTIMATORS, seeds=(1, 2, 3, 4, 5)),
    "repairs": Study(REPAIRS, POCKETS),
    "regime": Study(RLHF | {"tail selection": on_tail(), "RU": Way(RU)}, POCKETS, overrides=REGIME),
    "ru_cost": Study(RU_COST, overrides={"risk.alpha": 0.2}),
    "conditioned": Study(CONDITIONED, POCKETS, (21, 22, 23, 24, 25), {"ppo.kl_coef": 0.4}),
    "critic_free": Study(CRITIC_FREE, overrides=TWELVE),
    # the horizon lets beta move as far in 40 iterations as the paper's 10,000 do in 194
    "departures": Study(DEPARTURES, seeds=(1, 2, 3, 4, 5), overrides={"ppo.kl_target": 6.0, "ppo.kl_horizon": 2_000}),
}


if __name__ == "__main__":
    name, command, folder, *profiles = sys.argv[1:]
    getattr(STUDIES[name], command)(Path(folder), *profiles)
