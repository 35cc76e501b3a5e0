"""What tells cells apart: LoRAs and models by the name of the file where that is enough, else by what is in it."""

from __future__ import annotations

from typing import Any

import pytest

from diffopt.config.resolve import compose_requests
from diffopt.recipe.labels import cell_labels


def point(path: str, content: str, rank: int, **more: Any) -> dict[str, Any]:
    step = {"kind": "hotswap", "path": path, "content": content * 32, "rank": rank, "components": ["unet"], **more}
    return {"choices": {"lora": "hotswap"}, "recipe": {"lora": step}}


def test_what_follows_from_the_file_is_not_told_beside_it() -> None:
    found = cell_labels(
        [point("a/fox.safetensors", "aa", 4, target_rank=4), point("a/owl.safetensors", "bb", 8, target_rank=8)]
    )
    assert found == [{"lora.path": "fox.safetensors"}, {"lora.path": "owl.safetensors"}]


def test_files_of_one_name_are_told_apart_by_their_content() -> None:
    first, second, third = point("a/fox.st", "aa", 4), point("b/fox.st", "bb", 8), point("a/owl.st", "cc", 16)
    assert cell_labels([first, second]) == [
        {"lora.path": "fox.st", "lora.content": "a" * 12},
        {"lora.path": "fox.st", "lora.content": "b" * 12},
    ]
    assert [told["lora.content"] for told in cell_labels([first, second, third])] == ["a" * 12, "b" * 12, "c" * 12]


def test_what_was_asked_of_one_file_is_told() -> None:
    found = cell_labels([point("fox.st", "aa", 4, target_rank=size, scale=1.0) for size in (4, 8)])
    assert found == [{"lora.target_rank": "4"}, {"lora.target_rank": "8"}]


def test_the_file_that_is_swapped_in_explains_its_content_and_the_ranks() -> None:
    two = [
        point("fox.st", "aa", rank, swap_path=f"{name}.st", swap_content=name, target_rank=rank)
        for name, rank in (("owl", 4), ("elk", 8))
    ]
    assert cell_labels(two) == [{"lora.swap_path": "owl.st"}, {"lora.swap_path": "elk.st"}]


@pytest.mark.parametrize("model", ["tiny", "sdxl", "deepfloyd_if"])
def test_weights_are_told_by_their_own_word_and_not_by_the_files_that_they_bring(model: str) -> None:
    asked = compose_requests([f"model={model}", "model.weights=random,pretrained", "hardware=cpu"], multirun=True)
    data = [request.cell.model_dump(mode="json") for request in asked]
    assert data[0]["recipe"]["model"]["content"] != data[1]["recipe"]["model"]["content"]
    found = cell_labels(data)
    assert found == [{"model.weights": "random"}, {"model.weights": "pretrained"}]


@pytest.mark.parametrize("path", [None, "a folder"])
def test_what_the_files_of_a_local_folder_decide_is_told_by_the_folder(path: str | None) -> None:
    """A row keeps no path; then the content stands for it."""

    def local(content: str, weights: str, head_sizes: list[int]) -> dict[str, Any]:
        where = None if path is None else f"{path} {content}"
        model = {"path": where, "content": content * 32, "weights": weights, "head_sizes": head_sizes}
        return {"choices": {"model": "local"}, "recipe": {"model": model}}

    found = cell_labels([local("aa", "pretrained", [64]), local("bb", "pretrained", [72])])
    folder = [{"model.content": "a" * 12}, {"model.content": "b" * 12}]
    assert found == (folder if path is None else [{"model.path": "a folder aa"}, {"model.path": "a folder bb"}])
    twice = cell_labels([local("aa", weights, [64]) for weights in ("random", "pretrained")])
    assert twice == [{"model.weights": "random"}, {"model.weights": "pretrained"}], "of one folder"
