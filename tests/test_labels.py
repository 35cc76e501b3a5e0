"""What tells LoRAs apart: the name of the file where that is enough, and what is in it where it is not."""

from __future__ import annotations

from typing import Any

from diffopt.labels import labels


def point(path: str, content: str, rank: int, **more: Any) -> tuple[dict[str, str], dict[str, Any]]:
    step = {"kind": "hotswap", "path": path, "content": content * 32, "rank": rank, "components": ["unet"], **more}
    return {"lora": "hotswap"}, {"recipe": {"lora": step}}


def test_what_follows_from_the_file_is_not_told_beside_it() -> None:
    found = labels(
        [point("a/fox.safetensors", "aa", 4, target_rank=4), point("a/owl.safetensors", "bb", 8, target_rank=8)]
    )
    assert found == [{"lora.path": "fox.safetensors"}, {"lora.path": "owl.safetensors"}]


def test_files_of_one_name_are_told_apart_by_their_content() -> None:
    first, second, third = point("a/fox.st", "aa", 4), point("b/fox.st", "bb", 8), point("a/owl.st", "cc", 16)
    assert labels([first, second]) == [
        {"lora.path": "fox.st", "lora.content": "a" * 12},
        {"lora.path": "fox.st", "lora.content": "b" * 12},
    ]
    assert [told["lora.content"] for told in labels([first, second, third])] == ["a" * 12, "b" * 12, "c" * 12]


def test_what_was_asked_of_one_file_is_told() -> None:
    found = labels([point("fox.st", "aa", 4, target_rank=size, scale=1.0) for size in (4, 8)])
    assert found == [{"lora.target_rank": "4"}, {"lora.target_rank": "8"}]


def test_the_file_that_is_swapped_in_explains_its_content_and_the_ranks() -> None:
    two = [
        point("fox.st", "aa", rank, swap_path=f"{name}.st", swap_content=name, target_rank=rank)
        for name, rank in (("owl", 4), ("elk", 8))
    ]
    assert labels(two) == [{"lora.swap_path": "owl.st"}, {"lora.swap_path": "elk.st"}]
