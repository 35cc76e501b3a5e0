"""How much of a prompt a model reads. Needs no torch.

A tokenizer cuts off what is beyond its length, and the pipeline warns in a log at most. Where the tokenizer's files are
on this machine the tokens are counted; elsewhere a prompt is too long for certain when it has more words than tokens
are read, since no tokenizer joins words.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffopt.errors import UsageError
from diffopt.models.classes import pipeline_class_record
from diffopt.models.index import read_model_json
from diffopt.models.resolve import packaged_architecture
from diffopt.schema.model import Model
from diffopt.schema.workload import Workload

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONFIG = "tokenizer_config.json"
CLIP = "CLIPTokenizer"
ENDS = 2  # tokens that CLIP puts around a text
LONGEST = 10**6  # as a model_max_length: transformers writes 10**30 for none
# Of CLIP's tokenizer, as transformers makes it of vocab.json and merges.txt.
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def notes_on_prompts(model: Model, workload: Workload) -> Iterator[str]:
    """A note on each text of which some stage's text encoders do not read the end."""
    texts = {f"prompt {i}": text for i, text in enumerate(workload.prompts[: workload.batch_size], 1)}
    if len(workload.prompts) == 1:
        texts = {"the prompt": workload.prompts[0]}
    texts["the negative prompt"] = workload.negative_prompt
    for stage in model.stages:
        sizes = _lengths(stage) if stage.embeddings is None else {}
        if sizes:
            for name, text in texts.items():
                if (said := _cut_off(stage, sizes, text)) is not None:
                    yield f"workload: {name} has {said} model={stage.name} reads; the rest draws nothing"


def _cut_off(model: Model, sizes: Mapping[str, int], text: str) -> str | None:
    """What a text has more than is read of it; None where all of it is, or where nobody can tell."""
    limit = max(sizes.values())
    if len(text.encode()) + ENDS <= limit:  # a token is a byte at least
        return None
    counts = [_counted(_folders(model), name, text) for name, size in sizes.items() if size == limit]
    if None in counts:
        words = len(text.split())
        return f"{words} words, more than the {limit} tokens that" if words > limit else None
    count = min(count for count in counts if count is not None)
    return f"{count} tokens, more than the {limit} that" if count > limit else None


def _lengths(model: Model) -> dict[str, int]:
    """How many tokens of a text each tokenizer of a model reads, as far as it is known; by the tokenizer's folder."""
    encoded = model.call.max_sequence_length or _known_length(model)
    for folder in _folders(model):
        sizes: dict[str, int] = {}
        for config in sorted(folder.glob(f"tokenizer*/{CONFIG}")):
            if config.parent.name.replace("tokenizer", "text_encoder") not in model.text_encoders:
                continue
            try:
                told = read_model_json(config)
            except UsageError:  # whatever loads it says so
                continue
            size = told.get("model_max_length") if _is_clip(told) or encoded is None else encoded
            if isinstance(size, int) and 0 < size < LONGEST:
                sizes[config.parent.name] = size
        if sizes:
            return sizes
    return {}


def _known_length(model: Model) -> int | None:
    """Tokens that the pipeline's class encodes where its call says none; CLIP's tokenizers say it themselves."""
    return pipeline_class_record(str(getattr(model.pipelines, model.task))).prompt_tokens


def _is_clip(config: dict[str, Any]) -> bool:
    return str(config.get("tokenizer_class")).startswith(CLIP)


def _folders(model: Model) -> Iterator[Path]:
    """Where a model's tokenizers may lie here: its own folder, the configs that diffopt has, the hub's cache."""
    if model.path is not None:
        yield Path(model.path)
        return
    if model.architecture is not None:
        yield packaged_architecture(model.architecture, tiny=model.weights == "tiny")
    if model.id is not None and model.weights == "pretrained":
        from huggingface_hub import try_to_load_from_cache  # here for start-up time

        found = try_to_load_from_cache(model.id, f"tokenizer/{CONFIG}", revision=model.revision)
        if isinstance(found, str):
            yield Path(found).parents[1]


def _counted(folders: Iterable[Path], name: str, text: str) -> int | None:
    """Tokens of a text, those around it included where the tokenizer's file tells them; None without a usable file."""
    for folder in folders:
        try:
            found = _tokenizer(folder / name)
        except Exception:  # of whatever kind: the Rust library raises bare ones for files that it cannot read
            continue
        if found is not None:
            return len(found[0].encode(text).ids) + found[1]
    return None


@functools.cache
def _tokenizer(folder: Path) -> tuple[Tokenizer, int] | None:
    """The tokenizer of a folder, and how many tokens it puts around a text without saying so."""
    whole, vocabulary, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if whole.is_file():
        from tokenizers import Tokenizer  # here and below for start-up time

        made = Tokenizer.from_file(str(whole))
        made.no_truncation()
        made.no_padding()
        return made, 0
    if not (vocabulary.is_file() and merges.is_file() and _is_clip(read_model_json(folder / CONFIG))):
        return None
    return _clip_tokens(vocabulary, merges), ENDS


def _clip_tokens(vocabulary: Path, merges: Path) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    model = models.BPE.from_file(str(vocabulary), str(merges), end_of_word_suffix="</w>", unk_token="<|endoftext|>")
    made = Tokenizer(model)
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    made.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return made
