"""The embedded world: a grammar that writes texts, and small models trained on them."""

from rarlhf_nb.data.pocket import build
from rarlhf_nb.data.pocket.build import PocketWorld

# RealToxicityPrompts-Gen and Jigsaw-Gen share their models, as in the paper
MODELS_OF = {"pocket-rtp": "pocket-jigsaw"}


def pocket_world(source: str) -> PocketWorld:
    """The world whose models serve `source`; the models are built on the first call (in under a minute)."""
    return build.pocket_world(MODELS_OF.get(source, source))


__all__ = ["PocketWorld", "pocket_world"]
