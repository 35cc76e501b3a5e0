"""Tokenizers made from tokenizer_config.json alone, for pipelines whose real vocabulary is not at hand.

A made tokenizer has the real one's class, number of ids, special ids, longest length and way of cutting up a text. The
words below are one token each, so prompts and the instructions that some pipelines put around them come to about as
many tokens as with the real vocabulary: a pipeline that cuts off the first 34 tokens cuts off its instruction. What the
other ids mean is made up, which random weights do not notice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffopt.errors import UsageError
from diffopt.models.index import is_size_in_model_config, read_model_json
from diffopt.models.random.clip_tokenizer import TEXT, build_tokenizer, byte_tokens, learn_bpe_merges

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SAVED = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")  # any of them is a real vocabulary
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token", "mask_token", "model_max_length", "padding_side")

# Words of the instructions that diffusers' pipelines of HunyuanVideo, Qwen-Image and Sana send along with a prompt.
_INSTRUCTIONS = """
A Actions Describe Enhanced Evaluate Given Here If Please Prompt The User about adding additional already angles any
aspects assistant atmosphere avoid behaviors below blooming bus bustling busy by camera changes clothing colorful colors
commentary concrete content create crowd curled decker description descriptions detail detailing details diverse double
enhance enhanced environment evaluations events examples existing featuring fluffy flowers focus following generate
generation glass glowing how image including lamps level main movement movements object objects only or overcomplicating
passing peacefully physical pots prompt prompts provides quantity refine relationships round scenes shapes simple size
sizes skyscrapers slightly small spatial specifics start suitable sunny surrounded system temporal texture textures that
theme think towering transform transitions up used user video visual vivid warm windowsill without
"""
_CHAT = (  # ChatML as Qwen3 writes it: a model that shall not think is given empty thoughts
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
_LLAMA3_WORDS = (  # how Llama 3 cuts up a text before it looks for tokens
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class TokenizerConfig:
    """What a tokenizer_config.json asks for."""

    path: Path
    size: int  # number of ids
    fixed: Mapping[str, int]  # ids of the tokens that stand outside of the text
    plain: frozenset[str]  # those of them that are shown when ids become text again
    roles: Mapping[str, Any]  # which token does what, and the longest length: arguments of every tokenizer
    extra_ids: int  # sentinels of T5, the last ids

    def role(self, name: str) -> Any:
        """Raises UsageError where the config lacks it."""
        if name not in self.roles:
            raise UsageError(f"{self.path} must say {name}")
        return self.roles[name]

    def id_of(self, role: str) -> int:
        """The id of the token with this role. Raises UsageError where the config lacks it."""
        token = self.role(role)
        if token not in self.fixed:
            raise UsageError(f"{self.path} must say the id of {role} {token} in added_tokens_decoder")
        return self.fixed[token]


def tokenizer_of_model_folder(folder: Path, class_name: str) -> Any:
    """The tokenizer saved in ``folder``, and where there is none, one made from its tokenizer_config.json.

    Raises UsageError for a class that diffopt makes none of, and for a config that does not say enough.
    """
    import transformers

    if any((folder / name).exists() for name in SAVED):
        return getattr(transformers, class_name).from_pretrained(folder, local_files_only=True)
    make = _MAKERS.get(class_name.removesuffix("Fast"))
    if make is None:
        raise UsageError(
            f"{folder} has no tokenizer, and diffopt makes none of the class {class_name} (it can: "
            f"{', '.join(_MAKERS)}); copy {', '.join(SAVED[:-1])} or {SAVED[-1]} there from the model it belongs to"
        )
    return make(_read_asked(folder))


def _read_asked(folder: Path) -> TokenizerConfig:
    path = folder / "tokenizer_config.json"
    config = read_model_json(path)
    size = config.get("vocab_size")
    if size is None:  # an encoder with exactly one row for each id
        encoder = folder.parent / folder.name.replace("tokenizer", "text_encoder")
        size = read_model_json(encoder / "config.json").get("vocab_size")
    added = config.get("added_tokens_decoder", {})
    try:
        fixed = {str(entry["content"]): int(key) for key, entry in added.items()}
        plain = frozenset(entry["content"] for entry in added.values() if not entry["special"])
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UsageError(f"{path}: added_tokens_decoder must map ids to {{content: TEXT, special: true}}") from None
    if (
        not isinstance(size, int)
        or not is_size_in_model_config(size)
        or any(not 0 <= place < size for place in fixed.values())
    ):
        raise UsageError(f"{path} must say vocab_size, a number above each id in added_tokens_decoder")
    roles = {role: config[role] for role in ROLES if role in config}
    return TokenizerConfig(path, size, fixed, plain, roles, extra_ids=config.get("extra_ids", 0))


def _clip(asked: TokenizerConfig) -> Any:
    return build_tokenizer(asked.size, pad_token=asked.role("pad_token"), max_length=asked.role("model_max_length"))


def _t5(asked: TokenizerConfig) -> Any:
    """T5's and umT5's: as few pieces as a text can be put together of. umT5 has ``<unk>`` at another id."""
    from tokenizers.models import Unigram
    from transformers import T5Tokenizer

    unknown = asked.id_of("unk_token")
    sentinels = {f"<extra_id_{i}>": asked.size - 1 - i for i in range(asked.extra_ids)}
    special = {**asked.fixed, **sentinels}
    words = dict.fromkeys("▁" + word for word in _words())
    tokens = chain("▁", _printable(), words, (a + b for a, b in _learned("▁")))
    layout = _layout(tokens, special, asked.size)
    pieces = [(token, 0.0 if token in special else -100.0 if unused else -10.0) for token, unused in layout]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=asked.extra_ids, **asked.roles)
    if unknown != 2:  # what the class takes for granted
        tokenizer.backend_tokenizer.model = Unigram(pieces, unk_id=unknown, byte_fallback=False)
    return tokenizer


def _qwen(asked: TokenizerConfig) -> Any:
    """Qwen 2's and 3's: byte-level, with their chat template."""
    from transformers import Qwen2Tokenizer

    vocab, merges = _byte_pairs(byte_tokens(), "Ġ", asked)
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges, **asked.roles)
    tokenizer.add_tokens(_added(asked))
    tokenizer.chat_template = _CHAT
    return tokenizer


def _gemma(asked: TokenizerConfig) -> Any:
    """Gemma's: pieces as in SentencePiece, bytes for what is not among them, ``<bos>`` in front of every text."""
    from transformers import GemmaTokenizer

    letters = ["▁", *_printable(), *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab, merges = _byte_pairs(letters, "▁", asked)
    tokenizer = GemmaTokenizer(vocab=vocab, merges=merges, **asked.roles)
    _begin_with(tokenizer.backend_tokenizer, asked)
    return tokenizer


def _llama(asked: TokenizerConfig) -> Any:
    """Llama 3's: byte-level, ``<|begin_of_text|>`` in front of every text."""
    from tokenizers import Regex, Tokenizer, decoders, models
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
    from transformers import PreTrainedTokenizerFast

    vocab, merges = _byte_pairs(byte_tokens(), "Ġ", asked)
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    cut = Split(Regex(_LLAMA3_WORDS), "isolated")
    backend.pre_tokenizer = Sequence([cut, ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    _begin_with(backend, asked)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **asked.roles)
    tokenizer.add_tokens(_added(asked))
    return tokenizer


_MAKERS = {
    "CLIPTokenizer": _clip,
    "T5Tokenizer": _t5,
    "Qwen2Tokenizer": _qwen,
    "GemmaTokenizer": _gemma,
    "LlamaTokenizer": _llama,
}


def _begin_with(backend: Tokenizer, asked: TokenizerConfig) -> None:
    from tokenizers.processors import TemplateProcessing

    bos = asked.role("bos_token")
    special = [(bos, asked.id_of("bos_token"))]
    backend.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=special)


def _added(asked: TokenizerConfig) -> list[Any]:
    from tokenizers import AddedToken

    return [AddedToken(token, special=token not in asked.plain, normalized=False) for token in asked.fixed]


def _byte_pairs(letters: list[str], space: str, asked: TokenizerConfig) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary, and as many merges of its tokens as there is room for."""
    room = asked.size - len(asked.fixed) - len(letters)
    if room < 0:
        raise UsageError(f"{asked.path}: vocab_size={asked.size}, but such a tokenizer has {asked.size - room} or more")
    merges = _learned(space)[:room]
    layout = _layout([*letters, *(a + b for a, b in merges)], asked.fixed, asked.size)
    return {token: i for i, (token, _) in enumerate(layout)}, list(merges)


@cache
def _learned(space: str) -> tuple[tuple[str, str], ...]:
    """The merges that make each word one token, with ``space`` in front of it and without."""
    spelled = [[*prefix, *word] for word in _words() for prefix in ((space,), ())]
    empty_line = [["Ċ", "Ċ"]] if space == "Ġ" else []  # in the spelling of bytes
    return tuple(learn_bpe_merges([*spelled, *empty_line], limit=10**6))


def _words() -> list[str]:
    words = TEXT.split()
    return list(dict.fromkeys([*words, *_INSTRUCTIONS.split(), *map(str.title, words)]))


def _printable() -> list[str]:
    return [chr(code) for code in range(33, 127)]


def _layout(tokens: Iterable[str], fixed: Mapping[str, int], size: int) -> list[tuple[str, bool]]:
    """Each id's token and whether nothing uses it: ``fixed`` ones at their places, ``tokens`` in order in between."""
    places = {place: token for token, place in fixed.items()}
    distinct = iter([token for token in dict.fromkeys(tokens) if token not in fixed])
    layout: list[tuple[str, bool]] = []
    for place in range(size):
        token = places.get(place) or next(distinct, None)
        layout.append((f"<|unused_{place}|>", True) if token is None else (token, False))
    return layout
