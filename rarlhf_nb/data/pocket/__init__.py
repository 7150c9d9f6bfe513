"""The embedded world: a grammar that writes texts, and small models trained on them."""

from rarlhf_nb.data.pocket.build import PocketWorld, pocket_world, prompt_pairs

__all__ = ["PocketWorld", "pocket_world", "prompt_pairs"]
