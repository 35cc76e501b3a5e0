"""models.random.clip_tokenizer: the right size and special ids, every text, realistic token counts."""

from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from diffopt.models.random.clip_tokenizer import build_tokenizer, byte_tokens, learn_bpe_merges
from diffopt.models.resolve import PACKAGED


def test_bytes_are_distinct_and_in_clips_order():
    letters = byte_tokens()
    assert len(set(letters)) == 256
    assert letters[0] == "!"


def test_merges_are_learned_by_frequency_and_limited():
    words = [["a", "b", "a</w>"], ["a", "b", "b</w>"]]
    merges = learn_bpe_merges(words, limit=10)
    assert merges[0] == ("a", "b")
    assert ("ab", "a</w>") in merges
    assert learn_bpe_merges(words, limit=1) == merges[:1]


def test_a_pair_that_merging_makes_or_ends_is_counted_again():
    """After ``a b`` is merged, ``b a`` is left once and ``ab ab`` is there twice."""
    merges = learn_bpe_merges([list("ababc"), list("abab"), list("abx")], limit=3)
    assert merges[:2] == [("a", "b"), ("ab", "ab")]
    assert merges[2] == ("ab", "x")


@pytest.fixture(scope="module")
def full():
    return build_tokenizer(49408)


def test_full_vocabulary_has_the_ids_of_clip(full):
    assert len(full) == full.vocab_size == 49408
    assert (full.bos_token_id, full.eos_token_id, full.unk_token_id, full.pad_token_id) == (49406, 49407, 49407, 49407)
    assert full.model_max_length == 77


def test_second_tokenizer_of_sdxl_pads_with_zero():
    tokenizer = build_tokenizer(49408, pad_token="!")
    ids = tokenizer("cat", padding="max_length").input_ids
    assert ids[0] == 49406
    assert ids[2] == 49407
    assert ids[3:] == [0] * 74


def test_common_words_are_one_token_and_any_text_is_encoded(full):
    assert len(full("a photo of an astronaut riding a horse").input_ids) == 8 + 2
    ids = full("snö 雪 ❄").input_ids
    assert 49407 not in ids[1:-1]  # nothing unknown
    assert full.decode(full("red circle").input_ids, skip_special_tokens=True) == "red circle"


def test_the_trained_model_still_reads_what_it_was_trained_with():
    trained = CLIPTokenizer.from_pretrained(Path(PACKAGED) / "tiny" / "tokenizer", local_files_only=True)
    assert build_tokenizer(1024).get_vocab() == trained.get_vocab()
    prompt = "a large red circle, top left of a dark photo"
    assert build_tokenizer(1024)(prompt).input_ids == trained(prompt).input_ids


def test_smallest_and_too_small_vocabularies():
    assert len(build_tokenizer(514)) == 514
    with pytest.raises(ValueError, match="at least 514"):
        build_tokenizer(513)
