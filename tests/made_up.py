"""Made-up tables of episodes, as `evaluate` leaves them."""

import pandas as pd


def made_up_episodes(rewards, **columns) -> pd.DataFrame:
    """One episode per prompt with these rewards; columns replace or add others."""
    places = range(len(rewards))
    table = {"prompt": [f"prompt {i}" for i in places], "completion": [f"completion {i}" for i in places]}
    table |= {"prompt_score": 0.0, "label": 0, "group": "all", "seed": 0, "reward": rewards}
    return pd.DataFrame(table | columns)
