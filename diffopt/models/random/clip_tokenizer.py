"""A byte-level CLIP tokenizer made on the spot, for pipelines whose real vocabulary is not at hand.

It has the layout of CLIP's own: ids 0-255 are the bytes (``!`` is 0), 256-511 the bytes that end a word, then merged
tokens, and the last two ids are ``<|startoftext|>`` and ``<|endoftext|>``. Every text can be encoded. The merges are
learned from the words below, so that a prompt has about as many tokens as with the real vocabulary; what the ids mean
is of course another matter, which random weights do not notice.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"

TEXT = """
a an the of in on at with and or to by from is are it its for as into over under near behind
red green blue yellow orange purple pink cyan white black gray brown gold silver dark bright light pale
circle square triangle star heart cross ring line dot shape background center top bottom left right small large big
photo picture image painting drawing sketch portrait landscape art style color view scene poster
man woman person child girl boy people face eyes hair hand astronaut robot knight wizard
cat dog horse bird fish fox lion bear owl dragon mouse
house city street forest mountain river sea ocean beach sky sun moon mars field garden tree flower grass rock snow rain
riding sitting standing running sleeping flying walking holding wearing
high quality highly detailed cinematic lighting soft sharp focus realistic digital watercolor oil vintage modern
best low worst blurry watermark text deformed
morning evening night day summer winter spring autumn dusk dawn window table chair car train ship
"""


def byte_tokens() -> list[str]:
    """One printable character per byte, in the order of CLIP and GPT-2: printable bytes first, then the rest."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return list(bytes_to_unicode().values())


def learn_bpe_merges(spelled: Iterable[Sequence[str]], limit: int) -> list[tuple[str, str]]:
    """At most ``limit`` byte-pair merges of words, most frequent pair first, ties in alphabetical order.

    A word is given as the tokens that it is made of at first; with merges enough it becomes one token.
    """
    words = [list(word) for word in spelled]
    holders: dict[tuple[str, str], set[int]] = {}  # which words have, or once had, this pair
    counts: Counter[tuple[str, str]] = Counter()
    ranked: list[tuple[int, tuple[str, str]]] = []  # a heap; entries with a count of before are passed over

    def count(changed: Iterable[int], sign: int) -> set[tuple[str, str]]:
        found = set()
        for i in changed:
            for pair in _pairs(words[i]):
                counts[pair] += sign
                holders.setdefault(pair, set()).add(i)
                found.add(pair)
        return found

    def rank(pairs: Iterable[tuple[str, str]]) -> None:
        for pair in pairs:
            heapq.heappush(ranked, (-counts[pair], pair))

    rank(count(range(len(words)), 1))
    merges: list[tuple[str, str]] = []
    while ranked and len(merges) < limit:
        negative, best = heapq.heappop(ranked)
        if negative == 0 or -negative != counts[best]:
            continue
        merges.append(best)
        changed = holders.pop(best)
        touched = count(changed, -1)
        for i in changed:
            words[i] = _merge(words[i], best)
        rank(touched | count(changed, 1))
    return merges


@cache
def _merges_of_text() -> tuple[tuple[str, str], ...]:
    """As many as there are: a smaller vocabulary has the first of them."""
    words = [[*word[:-1], word[-1] + WORD_END] for word in dict.fromkeys(TEXT.split())]
    return tuple(learn_bpe_merges(words, limit=10**6))


def _pairs(word: list[str]) -> list[tuple[str, str]]:
    return list(zip(word, word[1:], strict=False))


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


def build_tokenizer(vocab_size: int, *, pad_token: str = END, max_length: int = 77) -> CLIPTokenizer:
    """A CLIPTokenizer with exactly ``vocab_size`` ids, at least 514.

    ``pad_token`` is ``<|endoftext|>`` for most encoders and ``!`` (id 0) for the second one of SDXL.
    """
    from transformers import CLIPTokenizer

    letters = byte_tokens()
    if vocab_size < 2 * len(letters) + 2:
        raise ValueError(f"vocab_size={vocab_size}: a byte-level vocabulary has at least {2 * len(letters) + 2} tokens")
    merges = list(_merges_of_text()[: vocab_size - 2 * len(letters) - 2])
    tokens = [*letters, *(letter + WORD_END for letter in letters), *dict.fromkeys(a + b for a, b in merges)]
    unused = (f"<|unused_{i}|>" for i in range(vocab_size - 2 - len(tokens)))
    vocab = {token: i for i, token in enumerate([*tokens, *unused, START, END])}
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad_token, model_max_length=max_length)
