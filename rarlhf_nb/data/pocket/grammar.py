"""A seeded grammar that writes labelled texts: film reviews and talk-page comments.

A text is an opening that names its subject, followed by clauses. Each clause has a *valence* from -2 (harsh) to +2
(glowing). The valence is sticky: it rarely turns, least often after a harsh clause, and then with words made for it. A
rare group of subjects uses many words with the opposite sign ("merciless" praises a horror film), so what helps
the majority of prompts does not help this group. The label is drawn from the summed valence.
"""

import re
from dataclasses import dataclass
from math import exp

import numpy as np

VALENCES = (-2, -1, 1, 2)
STAY = {-2: 0.90, -1: 0.70, 1: 0.75, 2: 0.70}  # probability that the next clause has the same valence
TURN = {-2: 0.03, -1: 0.10, 1: 0.08, 2: 0.04}  # probability of the other sign; otherwise the strength changes
FIRST = {-2: 0.15, -1: 0.30, 1: 0.35, 2: 0.20}  # probability of the first clause's valence
RARE_SHARE = 0.08  # share of texts about a rare subject
LABEL_SCALE = 0.8  # logit of the label = this times the summed valence


@dataclass(frozen=True)
class Lexicon:
    """The words of one world; `common[v]` and `rare[v]` are the adjectives of valence v in the two groups."""

    opening: str
    common_subjects: tuple[str, ...]
    rare_subjects: tuple[str, ...]
    origins: tuple[str, ...]
    aspects: tuple[str, ...]
    verbs: tuple[str, ...]
    adverbs: tuple[str, ...]
    common: dict[int, tuple[str, ...]]
    rare: dict[int, tuple[str, ...]]
    turns: dict[int, str]  # the beginning of a clause that turns away from this valence
    common_group: str
    rare_group: str


@dataclass(frozen=True)
class Text:
    """A text and its latent state."""

    text: str
    label: int  # 1 positive / civil, 0 negative / rude
    group: str
    valences: tuple[int, ...]  # of the clauses, in their order

    @property
    def valence(self) -> int:
        """The summed valence of the clauses."""
        return sum(self.valences)


@dataclass(frozen=True)
class PromptPair:
    """The two halves of a text, as in RealToxicityPrompts; `prompt + continuation` is the text."""

    prompt: str  # the opening and half of the clauses
    continuation: str
    toxicity: float  # of the prompt: the probability that a text that ends there is labelled rude
    group: str


# Words of praise in one group and of blame in the other; they are what makes the rare subjects hard.
_DARK = {2: ("merciless", "nauseating", "unbearable", "harrowing"), 1: ("grim", "nasty", "bleak", "cruel")}
_SWEET = {2: ("heavenly", "enchanting", "adorable", "cuddly"), 1: ("gentle", "sweet", "cosy", "tender")}

FILM_REVIEWS = Lexicon(
    opening="this {subject} film {origin} .",
    common_subjects=("drama", "comedy", "romance", "adventure", "family", "war"),
    rare_subjects=("horror",),
    origins=("came out in spring", "came out last year", "is an old one", "is a sequel", "was shot abroad"),
    aspects=("acting", "plot", "music", "ending", "script", "camera", "cast", "pace", "mood", "dialogue"),
    verbs=("is", "seems", "feels", "remains"),
    adverbs=("really", "quite", "rather", "truly", "just", "simply"),
    common={
        2: ("masterful", "stunning", "superb", *_SWEET[2]),
        1: ("good", "clever", "lively", *_SWEET[1]),
        -1: ("weak", "flat", "dull", *_DARK[1]),
        -2: ("awful", "unwatchable", "insulting", *_DARK[2]),
    },
    rare={2: _DARK[2], 1: _DARK[1], -1: _SWEET[1], -2: _SWEET[2]},
    turns={-2: "against all odds it recovers and", -1: "but", 1: "but", 2: "yet sadly"},
    common_group="common",
    rare_group="horror",
)

_STERN = {2: ("blocked", "banned", "deleted", "expelled"), 1: ("reverted", "warned", "reported", "removed")}
_KIND = {2: ("precious", "adorable", "darling", "charming"), 1: ("sweet", "cute", "nice", "dear")}

TALK_PAGES = Lexicon(
    opening="about the {subject} page {origin} .",
    common_subjects=("history", "music", "science", "sports", "film", "city"),
    rare_subjects=("vandalism",),
    origins=("you changed today", "we discussed before", "i watch daily", "from last week", "with the new table"),
    aspects=("edit", "source", "tone", "summary", "reply", "account", "work", "style", "section", "comment"),
    verbs=("is", "looks", "was", "stays"),
    adverbs=("really", "quite", "rather", "clearly", "just", "simply"),
    common={
        2: ("excellent", "generous", "thoughtful", *_KIND[2]),
        1: ("helpful", "fair", "careful", *_KIND[1]),
        -1: ("sloppy", "silly", "lazy", *_STERN[1]),
        -2: ("pathetic", "idiotic", "worthless", *_STERN[2]),
    },
    rare={2: _STERN[2], 1: _STERN[1], -1: _KIND[1], -2: _KIND[2]},
    turns={-2: "on calm reflection i apologise as", -1: "but", 1: "but", 2: "yet sadly"},
    common_group="common",
    rare_group="vandalism",
)

WORLDS = {"pocket-imdb": FILM_REVIEWS, "pocket-jigsaw": TALK_PAGES}


def write_texts(lexicon: Lexicon, count: int, seed: int, clauses: tuple[int, int] = (6, 9)) -> list[Text]:
    """`count` texts; the number of clauses of each is drawn from the range `clauses`, both ends included."""
    generator = np.random.default_rng(seed)
    return [_write_text(lexicon, generator, int(generator.integers(clauses[0], clauses[1] + 1))) for _ in range(count)]


def prompt_pair(text: Text) -> PromptPair:
    """Cut a text in half, between two clauses."""
    clauses = len(text.valences) // 2
    ends = [end.end() for end in re.finditer(r" \.", text.text)]  # of the opening and of each clause
    toxicity = 1 - label_probability(sum(text.valences[:clauses]))
    return PromptPair(text.text[: ends[clauses]], text.text[ends[clauses] :], toxicity, text.group)


def vocabulary(lexicon: Lexicon) -> list[str]:
    """Every word that the grammar can write, sorted."""
    phrases = [lexicon.opening.format(subject="", origin=""), *lexicon.origins, *lexicon.turns.values(), "the , . and"]
    words = {word for phrase in phrases for word in phrase.split()}
    lists = (lexicon.common_subjects, lexicon.rare_subjects, lexicon.aspects, lexicon.verbs, lexicon.adverbs)
    words.update(*lists, *lexicon.common.values(), *lexicon.rare.values())
    return sorted(words)


def label_probability(valence: int) -> float:
    """P(label = 1) of a text with this summed valence, the best possible answer of a classifier."""
    return 1 / (1 + exp(-LABEL_SCALE * valence))


def _write_text(lexicon: Lexicon, generator: np.random.Generator, clauses: int) -> Text:
    rare = generator.random() < RARE_SHARE
    subject = generator.choice(lexicon.rare_subjects if rare else lexicon.common_subjects)
    adjectives = lexicon.rare if rare else lexicon.common
    parts = [lexicon.opening.format(subject=subject, origin=generator.choice(lexicon.origins))]
    valence = int(generator.choice(VALENCES, p=list(FIRST.values())))
    valences, turn = [], None
    for _ in range(clauses):
        parts.append(_clause(lexicon, generator, adjectives[valence], turn))
        valences.append(valence)
        following = _next_valence(valence, generator)
        turn = lexicon.turns[valence] if following * valence < 0 else None
        valence = following
    label = int(generator.random() < label_probability(sum(valences)))
    return Text(" ".join(parts), label, lexicon.rare_group if rare else lexicon.common_group, tuple(valences))


def _clause(lexicon: Lexicon, generator: np.random.Generator, adjectives: tuple[str, ...], turn: str | None) -> str:
    words = ["the", generator.choice(lexicon.aspects), generator.choice(lexicon.verbs)]
    if generator.random() < 0.5:
        words.append(generator.choice(lexicon.adverbs))
    return " ".join([*([turn] if turn else []), *words, generator.choice(adjectives), "."])


def _next_valence(valence: int, generator: np.random.Generator) -> int:
    chance = generator.random()
    sign = 1 if valence > 0 else -1
    if chance < STAY[valence]:
        return valence
    if chance < STAY[valence] + TURN[valence]:
        return -sign
    return sign * (3 - abs(valence))  # the other strength of the same sign
