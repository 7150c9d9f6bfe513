"""The embedded world: a grammar that writes texts, and the small models trained on them."""

from rarlhf_nb.pocket.build import PocketWorld, pocket_world

__all__ = ["PocketWorld", "pocket_world"]
