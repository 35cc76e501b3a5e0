"""models.random.tokenizers: sizes, special ids and token counts of the real vocabularies; any text; saved ones."""

import json
from functools import cache
from pathlib import Path

import pytest
from diffusers import QwenImagePipeline
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE

from diffopt.errors import UsageError
from diffopt.models.random.tokenizers import tokenizer_of_model_folder
from diffopt.models.resolve import PACKAGED

PROMPT = "A photo of an astronaut riding a horse on mars, highly detailed"  # 12 words and a comma


@cache
def made(folder):
    folder = Path(PACKAGED) / folder
    index = json.loads((folder.parent / "model_index.json").read_text())
    return tokenizer_of_model_folder(folder, index[folder.name][1])


# Where the figures stand: the tokenizer_config.json, or tokenizer.json, of openai/clip-vit-large-patch14,
# google/t5-v1_1-xxl, google/umt5-xxl, Qwen/Qwen2.5-VL-7B-Instruct, Qwen/Qwen3-4B, google/gemma-2-2b, and of the copy of
# Llama 3 that HunyuanVideo comes with.
@pytest.mark.parametrize(
    ("folder", "size", "ids", "max_length"),
    [
        ("sd15/tokenizer", 49408, {"<|startoftext|>": 49406, "<|endoftext|>": 49407, "!": 0}, 77),
        ("flux_dev/tokenizer_2", 32100, {"<pad>": 0, "</s>": 1, "<unk>": 2, "<extra_id_0>": 32099}, 512),
        (
            "wan21_t2v_1_3b/tokenizer",
            256300,
            {"<pad>": 0, "</s>": 1, "<s>": 2, "<unk>": 3, "<extra_id_0>": 256299},
            512,
        ),
        (
            "qwen_image/tokenizer",
            151665,
            {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645},
            131072,
        ),
        ("z_image/tokenizer", 151669, {"<|im_end|>": 151645, "<think>": 151667, "</think>": 151668}, 131072),
        ("sana_1600m/tokenizer", 256000, {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4}, 8192),
        ("hunyuan_video/tokenizer", 128259, {"<|begin_of_text|>": 128000, "<|eot_id|>": 128009, "<pad>": 128258}, 256),
    ],
)
def test_size_special_ids_and_longest_text(folder, size, ids, max_length):
    tokenizer = made(folder)
    assert len(tokenizer) == size
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in ids} == ids
    assert tokenizer.model_max_length == max_length
    assert max(tokenizer(PROMPT).input_ids) < size


@pytest.mark.parametrize(
    ("folder", "before", "after"),
    [
        ("sd15/tokenizer", [49406], [49407]),
        ("flux_dev/tokenizer_2", [], [1]),
        ("wan21_t2v_1_3b/tokenizer", [], [1]),
        ("qwen_image/tokenizer", [], []),
        ("sana_1600m/tokenizer", [2], []),
        ("hunyuan_video/tokenizer", [128000], []),
    ],
)
def test_an_ordinary_prompt_has_a_token_for_each_word(folder, before, after):
    tokenizer = made(folder)
    ids = tokenizer(PROMPT).input_ids
    assert len(ids) == len(before) + 13 + len(after)
    assert ids[: len(before)] == before
    assert ids[len(ids) - len(after) :] == after
    assert 13 + 2 < len(tokenizer(PROMPT + ", incandescent").input_ids) < 13 + 12  # in a few pieces


@pytest.mark.parametrize("size", ["", "/tiny"])
def test_pipelines_cut_off_exactly_their_instructions(size):
    """Qwen-Image drops the first 34 tokens and HunyuanVideo the first 95, whatever they are."""
    parts = QwenImagePipeline(None, None, None, None, None)
    for folder, template, dropped in (
        (f"qwen_image{size}/tokenizer", parts.prompt_template_encode, parts.prompt_template_encode_start_idx),
        (f"hunyuan_video{size}/tokenizer", DEFAULT_PROMPT_TEMPLATE["template"], DEFAULT_PROMPT_TEMPLATE["crop_start"]),
    ):
        tokenizer = made(folder)
        ids = tokenizer(template.format("cat")).input_ids
        assert tokenizer.decode(ids[dropped]) == "cat"


@pytest.mark.parametrize(("thinking", "end"), [(True, ""), (False, "<think>\n\n</think>\n\n")])
def test_chat_of_qwen3(thinking, end):
    tokenizer = made("z_image/tokenizer")
    chat = [{"role": "user", "content": "a cat"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, enable_thinking=thinking)
    assert text == f"<|im_start|>user\na cat<|im_end|>\n<|im_start|>assistant\n{end}"
    parts = [{"role": "user", "content": [{"type": "text", "text": "a cat"}]}]
    assert tokenizer.apply_chat_template(parts, tokenize=False) == "<|im_start|>user\na cat<|im_end|>\n"
    ids = tokenizer(text).input_ids
    assert ids.count(151644) == 2
    assert ids.count(151667) == ids.count(151668) == (not thinking)


@pytest.mark.parametrize("folder", ["qwen_image", "z_image", "hunyuan_video", "qwen_image/tiny", "sana_1600m"])
def test_any_text_comes_back(folder):
    text = "Snö, 雪 ❄ — déjà vu 1234"
    tokenizer = made(f"{folder}/tokenizer")
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


@pytest.mark.parametrize(("folder", "unknown"), [("flux_dev/tokenizer_2", 2), ("wan21_t2v_1_3b/tokenizer", 3)])
def test_t5_says_unknown(folder, unknown):
    tokenizer = made(folder)
    assert unknown in tokenizer("a ❄ cat").input_ids
    assert tokenizer.unk_token_id == unknown


@pytest.mark.parametrize(
    "index", sorted(PACKAGED.rglob("model_index.json")), ids=lambda path: str(path.parent.relative_to(PACKAGED))
)
def test_no_id_is_beyond_the_rows_of_the_text_encoder(index):
    """Sizes as the configs say them, which the test above holds against what is made."""
    for folder in index.parent.glob("tokenizer*"):
        encoder = folder.parent / folder.name.replace("tokenizer", "text_encoder") / "config.json"
        config = json.loads(encoder.read_text())
        rows = config.get("text_config", config)["vocab_size"]
        asked = json.loads((folder / "tokenizer_config.json").read_text())
        assert asked.get("vocab_size", rows) <= rows
        if rows < 3000:  # quick to make
            assert len(made(folder.relative_to(PACKAGED))) <= rows


@pytest.mark.parametrize(
    "name", ["flux_dev/tiny/tokenizer_2", "qwen_image/tiny/tokenizer", "sana_1600m/tiny/tokenizer"]
)
def test_a_real_vocabulary_in_the_folder_is_taken(tmp_path, name):
    """From what is saved there none could be made."""
    tokenizer = made(name)
    tokenizer.save_pretrained(tmp_path)
    assert "vocab_size" not in json.loads((tmp_path / "tokenizer_config.json").read_text())
    loaded = tokenizer_of_model_folder(tmp_path, type(tokenizer).__name__)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded(PROMPT).input_ids == tokenizer(PROMPT).input_ids


def config(folder, **keys):
    asked = {"vocab_size": 600, "added_tokens_decoder": {}, "model_max_length": 8, **keys}
    (folder / "tokenizer_config.json").write_text(json.dumps(asked))
    return folder


def test_a_class_that_none_is_made_of(tmp_path):
    with pytest.raises(UsageError, match=r"makes none of the class ByT5Tokenizer .*copy tokenizer\.json"):
        tokenizer_of_model_folder(config(tmp_path), "ByT5Tokenizer")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"vocab_size": "many"}, "must say vocab_size"),
        ({"added_tokens_decoder": {"600": {"content": "<s>", "special": True}}}, "must say vocab_size, a number above"),
        ({"added_tokens_decoder": {"0": "<s>"}}, "added_tokens_decoder must map ids to"),
        ({"added_tokens_decoder": ["<s>"]}, "added_tokens_decoder must map ids to"),
        ({"vocab_size": 200}, "has 256 or more"),
    ],
)
def test_a_config_that_does_not_say_enough(tmp_path, keys, message):
    with pytest.raises(UsageError, match=message):
        tokenizer_of_model_folder(config(tmp_path, **keys), "Qwen2Tokenizer")


@pytest.mark.parametrize(
    ("class_name", "keys", "message"),
    [
        ("T5TokenizerFast", {}, "must say unk_token"),
        ("T5Tokenizer", {"unk_token": "<unk>"}, "must say the id of unk_token <unk> in added_tokens_decoder"),
        ("LlamaTokenizerFast", {}, "must say bos_token"),
        ("CLIPTokenizer", {}, "must say pad_token"),
    ],
)
def test_a_config_without_a_special_token(tmp_path, class_name, keys, message):
    with pytest.raises(UsageError, match=message):
        tokenizer_of_model_folder(config(tmp_path, **keys), class_name)
