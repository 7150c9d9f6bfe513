"""The ledger: every number that the paper's draft published for a task, our number, and whether the two compare."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from rarlhf_nb.lab.evaluation.report import Report, interval_cells
from rarlhf_nb.lab.methods import method_name
from rarlhf_nb.lab.profiles import Profile, load_profile
from rarlhf_nb.settings import flat

PUBLISHED = Path(__file__).parent / "published.yaml"
METRICS = ("reward", "tail_reward", "perplexity")
# Two numbers compare only if these settings are the same; each with its name for readers.
IDENTITIES = {
    "policy.model": "policy",
    "reward.model": "reward model",
    "task.dataset": "data set",
    "task.prompt_length": "prompt length",
    "sampling.completion_length": "completion length",
    "task.tail_threshold": "tail threshold",
    "ppo.iterations": "iterations",
    "task.test_prompts": "test prompts",
}
COLUMNS = ["published_for", "method", "metric", "published", "published_std", "ours", "ours_low", "ours_high"]
COLUMNS += ["difference", "comparable", "differs", "reason"]
ENDS = {"value": "ours", "low": "ours_low", "high": "ours_high"}  # columns of a report, and of the ledger


def build_ledger(report: Report, profile: Profile) -> pd.DataFrame:
    """One row per published number of the profile's task.

    Columns: published_for (profile), method, metric, published, published_std, ours, ours_low, ours_high (95 %
    bootstrap interval), difference (ours - published), comparable, differs (a list of the settings in `IDENTITIES`
    that are not as published), reason (in words, why the two do not compare; empty if they do).
    """
    own = report.own.rename(columns=ENDS)[["method", "metric", *ENDS.values()]]
    ledger = pd.DataFrame(_published(profile)).merge(own, "left")
    unmeasured = ledger["ours"].isna() & (ledger["reason"] == "")
    ledger["reason"] = ledger["reason"].mask(unmeasured, "not measured in this run")
    ledger["difference"] = ledger["ours"] - ledger["published"]
    ledger["comparable"] = ledger["reason"] == ""
    return ledger[COLUMNS]


def _published(profile: Profile) -> list[dict[str, Any]]:
    """The published numbers of the task, each with the reason why a number of this profile does not compare."""
    rows, ours = [], flat(profile.model_dump())
    for entry in yaml.safe_load(PUBLISHED.read_text()):
        published = load_profile(entry["profile"])
        theirs = flat(published.model_dump())
        differs = [key for key in IDENTITIES if theirs[key] != ours[key]]
        reasons = [f"differs in {', '.join(IDENTITIES[key] for key in differs)}"] if differs else []
        reasons += [entry["departs"]] if "departs" in entry else []
        common = {"published_for": entry["profile"], "differs": differs, "reason": "; ".join(reasons)}
        for metric in METRICS if published.task.name == profile.task.name else ():
            for method, number in entry.get(metric, {}).items():
                mean, std = [*np.ravel(number), np.nan][:2]
                rows.append(common | {"method": method, "metric": metric, "published": mean, "published_std": std})
    return rows


def ledger_table(ledger: pd.DataFrame) -> pd.DataFrame:
    """The ledger for reading: one row per published number, rounded; `comparable` is "yes", or "no" with the reason."""
    spread = ledger["published_std"].map(" ± {:.2f}".format).where(ledger["published_std"].notna(), "")
    return pd.DataFrame(
        {
            "published for": ledger["published_for"],
            "method": ledger["method"].map(method_name),
            "metric": ledger["metric"],
            "published": ledger["published"].map("{:.2f}".format) + spread,
            "ours": interval_cells(ledger.rename(columns={ours: end for end, ours in ENDS.items()})),
            "difference": ledger["difference"].map("{:.2f}".format).where(ledger["ours"].notna(), "–"),
            "comparable": np.where(ledger["comparable"], "yes", "no: " + ledger["reason"]),
        }
    )
