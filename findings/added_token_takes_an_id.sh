#!/usr/bin/env bash
# Surprise: a token added to a vocabulary with holes can take the id of a token that is already there.
# Guess: the new token gets the largest id + 1, or the first free one.
# Versions: tokenizers 0.23.3
# Behaviour: the id is the NUMBER of tokens. With the ids 0, 1 and 3 that is 3, the id of "c": "c" is still encoded as 3,
#   but 3 is decoded as the new token. There is no warning. One added token beyond the largest id cures it.
# Seen:
#   before {'a': 0, 'b': 1, 'c': 3}
#   after  {'a': 0, 'b': 1, 'c': 3, 'new': 3}
#   "c" is encoded as [3] and decoded as "new"
#   with the special token "<end>" of id 7 added first: 'new': 8
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

python_with tokenizers==0.23.3 <<'PYTHON'
from tokenizers import Tokenizer
from tokenizers.models import WordLevel


def listed(tokenizer):
    return dict(sorted(tokenizer.get_vocab().items()))


tokenizer = Tokenizer(WordLevel({"a": 0, "b": 1, "c": 3}, unk_token="a"))
print("before", listed(tokenizer))
tokenizer.add_tokens(["new"])
ids = tokenizer.encode("c").ids
print("after ", listed(tokenizer))
print(f'"c" is encoded as {ids} and decoded as "{tokenizer.decode(ids)}"')

other = Tokenizer(WordLevel({"a": 0, "b": 1, "c": 3, "<end>": 7}, unk_token="a"))
other.add_special_tokens(["<end>"])
other.add_tokens(["new"])
print("with <end> added first:", listed(other))

assert tokenizer.token_to_id("new") == 3 and tokenizer.decode(ids) == "new", "behaviour changed: the id is a free one"
assert other.token_to_id("new") == 8, "behaviour changed: an added token of a high id no longer counts"
PYTHON
