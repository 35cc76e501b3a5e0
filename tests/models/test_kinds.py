"""What a component is comes from the files of its folder and from its library, and never from how its name ends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffopt.errors import UsageError
from diffopt.machine.paths import shipped_conf
from diffopt.models import kinds
from diffopt.models.index import read_model_index
from diffopt.models.kinds import kind_of_component, kind_told_by_library
from diffopt.models.resolve import PACKAGED, TINY, packaged_architecture, with_model_facts

FOLDERS = sorted(path.parent for path in PACKAGED.rglob("model_index.json"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Any], list[str]]:
    """Let the library answer so; gives the classes that it is asked for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kind_told_by_library.cache_clear()
    names: list[str] = []

    def answering(answer: Any) -> list[str]:
        monkeypatch.setattr(kinds, "_asked_of_library", lambda module, name: names.append(f"{module}.{name}") or answer)
        return names

    return answering


@pytest.mark.parametrize("name", ["TokenizersBackend", "PreTrainedTokenizerFast", "MistralCommonBackend", "NewThing"])
def test_a_tokenizer_is_one_by_any_name(name: str, asked: Callable[[Any], list[str]], tmp_path: Path) -> None:
    names = asked(None)
    folder = Path(shutil.copytree(packaged_architecture("sd15", tiny=True), tmp_path / "mine"))
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    index["tokenizer"] = ["transformers", name]
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    found = read_model_index(folder)
    assert found.components["tokenizer"].kind == "tokenizer"
    assert "tokenizer" not in found.modules
    assert "tokenizer" in found.without_text().absent
    data = yaml.safe_load((shipped_conf() / "model" / "local.yaml").read_text(encoding="utf-8"))
    model = with_model_facts({**data, "path": str(folder), "weights": "random"}, Path.cwd())
    assert model["text_encoders"] == ["text_encoder"]
    assert names == []


@pytest.mark.parametrize("name", ["HugeEncoderTokenizer", "UNetScheduler", "ImageProcessor", "TextGuidance"])
def test_a_model_is_one_by_any_name(name: str) -> None:
    assert kind_of_component("transformers", name, frozenset({"config.json", "model.safetensors"})) == "module"


@pytest.mark.parametrize("folder", FOLDERS, ids=[str(path.relative_to(PACKAGED)) for path in FOLDERS])
def test_the_files_of_every_architecture_tell(folder: Path, asked: Callable[[Any], list[str]]) -> None:
    """Without the library, and the same as by the names that these classes happen to have."""
    names = asked(None)
    found = read_model_index(folder).components
    assert names == []
    ends = {"scheduler": "Scheduler", "tokenizer": "Tokenizer", "processor": "Processor", "guider": "Guidance"}
    for part in found.values():
        named = next((kind for kind, end in ends.items() if part.class_name.removesuffix("Fast").endswith(end)), None)
        assert part.kind == (named or "module")
    assert folder.name != TINY or len(found) > 2


@pytest.mark.parametrize("names", [(), ("config.json", "tokenizer_config.json")], ids=["nothing", "both"])
def test_what_files_do_not_tell_the_library_is_asked_once(
    names: tuple[str, ...], asked: Callable[[Any], list[str]]
) -> None:
    asks = asked("module")
    for _ in range(2):
        assert kind_of_component("transformers", "NewThing", frozenset(names)) == "module"
    kind_told_by_library.cache_clear()  # as another process would find it
    assert kind_of_component("transformers", "NewThing", frozenset(names)) == "module"
    assert asks == ["transformers.NewThing"]


def test_a_class_that_the_library_has_not_is_told(asked: Callable[[Any], list[str]]) -> None:
    asked(None)
    with pytest.raises(UsageError, match=r"transformers\.NewThing is neither a model nor a tokenizer.*that saved"):
        kind_of_component("transformers", "NewThing", frozenset())


@pytest.mark.slow
def test_the_library_answers() -> None:
    """A process of its own imports it."""
    assert kinds._asked_of_library("transformers", "TokenizersBackend") == "tokenizer"
    assert kinds._asked_of_library("transformers", "T5EncoderModel") == "module"
    assert kinds._asked_of_library("transformers", "CLIPImageProcessorPil") == "processor"
    assert kinds._asked_of_library("transformers", "NoSuchThing") is None
    assert kinds._asked_of_library("diffusers", "LCMScheduler") == "scheduler"
    assert kinds._asked_of_library("diffusers", "AutoencoderKL") == "module"
    assert kinds._asked_of_library("no_such_library", "Thing") is None
