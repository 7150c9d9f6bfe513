"""The embedded world: a grammar that writes texts, and small models trained on them, which come with the package."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rarlhf_nb.data.pocket.grammar import WORLDS, PromptPair, Text, prompt_pair, write_texts
from rarlhf_nb.errors import UserError
from rarlhf_nb.files import checksum

MODELS = Path(__file__).parent / "models"
# RealToxicityPrompts-Gen and Jigsaw-Gen share their models, as in the paper
MODELS_OF = {"pocket-rtp": "pocket-jigsaw"}
SEEDS = {"train": 4, "test": 5}  # of the texts; 1 to 3 are those that the models saw


@dataclass(frozen=True)
class PocketWorld:
    """The texts of a world, and the folder of its models."""

    name: str
    folder: Path

    @property
    def policy(self) -> Path:
        """The language model, in the hub's format."""
        return self.folder / "policy"

    @property
    def reward(self) -> Path:
        """The reward model, in the hub's format, with `metrics.json`."""
        return self.folder / "reward"

    @property
    def fingerprint(self) -> str:
        """A hash of the code and the settings that made the models."""
        return json.loads((self.folder / "made_from.json").read_text())["fingerprint"]

    def texts(self, split: str, count: int) -> list[Text]:
        """`count` texts of the split `train` or `test`; no model was trained on them."""
        return write_texts(WORLDS[self.name], count, SEEDS[split])


def pocket_world(source: str) -> PocketWorld:
    """The world whose models serve `source`, a task such as `pocket-imdb`.

    Raises `UserError` if the models are damaged.
    """
    name = MODELS_OF.get(source, source)
    _check_weights(MODELS / name)
    return PocketWorld(name, MODELS / name)


@cache
def _check_weights(folder: Path) -> None:
    for name, own in json.loads((folder / "made_from.json").read_text())["weights"].items():
        if not (folder / name).is_file() or checksum(folder / name) != own:
            raise UserError(
                f"{folder / name} is damaged or missing: install the package again, or make the models with "
                "`rarlhf pocket build`."
            )


def prompt_pairs(split: str, count: int) -> list[PromptPair]:
    """The pocket counterpart of RealToxicityPrompts: `count` comments in halves; no model was trained on them."""
    seed = SEEDS[split] + 100  # not that of the whole comments, which `pocket-jigsaw` uses
    return [prompt_pair(text) for text in write_texts(WORLDS["pocket-jigsaw"], count, seed, clauses=(4, 6))]
