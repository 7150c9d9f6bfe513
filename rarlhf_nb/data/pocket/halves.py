"""The pocket counterpart of RealToxicityPrompts: talk-page comments cut into halves, with the prompt's toxicity.

The models are those of `pocket-jigsaw`, as the paper's RealToxicityPrompts-Gen and Jigsaw-Gen share theirs.
"""

from dataclasses import dataclass

from rarlhf_nb.data.pocket.build import SETTINGS
from rarlhf_nb.data.pocket.grammar import TALK_PAGES, Lexicon, Text, label_probability, write_texts

END = " ."
CLAUSES = (4, 6)  # of a whole comment; the prompt has the opening and half of the clauses


@dataclass(frozen=True)
class HalvedComment:
    """The two halves of a comment; `prompt + continuation` is the comment."""

    prompt: str
    continuation: str
    toxicity: float  # of the prompt: the probability that a text that ends there is labelled rude
    group: str


def halved_comments(split: str, count: int) -> list[HalvedComment]:
    """`count` comments of the split `train` or `test`; no model was trained on them."""
    # not the seeds of whole comments, which `pocket-jigsaw` uses
    texts = write_texts(TALK_PAGES, count, SETTINGS["seeds"][split] + 100, CLAUSES)
    return [_halved(text, TALK_PAGES) for text in texts]


def _halved(text: Text, lexicon: Lexicon) -> HalvedComment:
    sentences = [sentence + END for sentence in text.text.removesuffix(END).split(END)]
    kept = 1 + (len(sentences) - 1) // 2  # the opening is the first sentence
    prompt = "".join(sentences[:kept])
    toxicity = 1 - label_probability(valence(prompt, text.group, lexicon))
    return HalvedComment(prompt, "".join(sentences[kept:]), toxicity, text.group)


def valence(text: str, group: str, lexicon: Lexicon) -> int:
    """The summed valence of the words of a text about a subject of this group."""
    adjectives = lexicon.rare if group == lexicon.rare_group else lexicon.common
    of_word = {word: v for v, words in adjectives.items() for word in words}
    return sum(of_word.get(word, 0) for word in text.split())
