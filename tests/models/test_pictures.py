"""Pictures that go in: those that diffopt brings along, and a user's own files with all that can be wrong with them."""

from __future__ import annotations

import hashlib
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import StableDiffusionImg2ImgPipeline
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from diffopt.config.resolve import compose_requests
from diffopt.errors import Refusal, UsageError
from diffopt.models import calls
from diffopt.models.pictures import SHIPPED, open_picture, resolve_picture, shipped_pictures
from diffopt.recipe.plan import make_plan
from diffopt.schema.workload import Picture
from scripts.maintain.draw_inputs import LEVEL, SIDE, draw


@pytest.fixture(scope="module")
def drawn() -> dict[str, Image.Image]:
    return draw()


@pytest.mark.parametrize(("name", "mode"), [("scene", "RGB"), ("mask", "L"), ("edges", "L")])
def test_the_shipped_pictures_are_what_the_script_draws(drawn: dict[str, Image.Image], name: str, mode: str) -> None:
    with Image.open(SHIPPED / f"{name}.png") as shipped:
        assert (shipped.size, shipped.mode) == ((SIDE, SIDE), mode)
        apart = np.abs(np.asarray(shipped, int) - np.asarray(drawn[name], int))
    # Sines differ in their last digit from processor to processor, which may move a colour by one level.
    assert apart.max() <= (LEVEL if name == "scene" else 0)
    assert (apart > 0).mean() < 0.001


def test_the_shipped_pictures_are_small_and_these_alone(drawn: dict[str, Image.Image]) -> None:
    assert shipped_pictures() == sorted(drawn)
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 100_000


def test_mask_and_edges_fit_the_scene(drawn: dict[str, Image.Image]) -> None:
    scene, mask, edges = (np.asarray(drawn[name], int) for name in ("scene", "mask", "edges"))
    assert set(np.unique(mask)) == set(np.unique(edges)) == {0, 255}
    assert 0.1 < (mask > 0).mean() < 0.3
    assert 0.01 < (edges > 0).mean() < 0.05
    red = (scene[..., 0] > 140) & (scene[..., 1] < 100) & (scene[..., 2] < 90)  # the roof
    assert red.sum() > 5000
    assert (mask[red] > 0).all()
    steps = np.abs(np.diff(scene, axis=1)).sum(axis=2)
    assert steps[edges[:, :-1] > 0].mean() > 5 * steps[edges[:, :-1] == 0].mean()


# What a picture is given as.


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def saved(path: Path, picture: Image.Image | None = None, **options: Any) -> Path:
    (picture or Image.effect_noise((12, 8), 50).convert("RGB")).save(path, **options)
    return path


@pytest.mark.parametrize("name", ["scene", "mask", "edges"])
def test_a_bare_name_is_a_shipped_picture(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text("not this one")
    assert resolve_picture(name, "workload.image") == {"path": name, "content": sha256(SHIPPED / f"{name}.png")}


@pytest.mark.parametrize(
    "name", ["mine.png", "./mine.png", "sub/mine", "sub/mine.jpeg", "{here}/mine.webp", "~/mine.png"]
)
def test_a_suffix_or_a_slash_makes_it_a_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sub").mkdir()
    name = name.format(here=tmp_path)
    file = tmp_path / name.replace("~/", "")
    suffix = file.suffix.lstrip(".") or "png"
    saved(file, format=suffix)
    once = resolve_picture(name, "workload.image")
    assert once["content"] == sha256(file)
    assert Path(once["path"]).is_absolute()
    assert Path(once["path"]).samefile(file)
    monkeypatch.chdir("/")
    assert resolve_picture(once, "workload.image") == once, "resolving it again changes nothing"


def test_a_recipe_file_remembers_the_content(tmp_path: Path) -> None:
    file = saved(tmp_path / "mine.png")
    before = resolve_picture(str(file), "workload.mask")
    saved(file, Image.new("RGB", (5, 5), "red"))
    with pytest.raises(UsageError) as caught:
        resolve_picture(before, "workload.mask")
    assert "not the picture that the recipe was made with" in str(caught.value)
    assert "workload.mask.content=null" in str(caught.value)
    after = resolve_picture({**before, "content": None}, "workload.mask")
    assert after == {"path": str(file), "content": sha256(file)}


def blank_png(width: int, height: int) -> bytes:
    """A PNG that says it is this large, and ends with its first row."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(3 * width + 1)))


def encoded(kind: str, **options: Any) -> bytes:
    file = BytesIO()
    Image.effect_noise((40, 30), 50).convert("RGB").save(file, kind, **options)
    return file.getvalue()


FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "text.png": (lambda: b"hello", "is not a picture in PNG, JPEG or WebP"),
    "empty.png": (lambda: b"", "is not a picture"),
    "gif.png": (lambda: encoded("GIF"), "is not a picture"),
    "tiff.tif": (lambda: encoded("TIFF"), "is not a picture"),
    "cut.png": (lambda: encoded("PNG")[:200], "is damaged"),
    "cut.jpg": (lambda: encoded("JPEG")[:-100], "is damaged"),
    "cut.webp": (lambda: encoded("WEBP")[:-100], "is damaged"),
    "large.png": (lambda: blank_png(9000, 9000), "is too large"),  # Pillow would only warn
    "bomb.png": (lambda: blank_png(60000, 60000), "is too large"),
    "film.webp": (lambda: encoded("WEBP", save_all=True, append_images=[Image.new("RGB", (40, 30))]), "is animated"),
    "film.png": (lambda: encoded("PNG", save_all=True, append_images=[Image.new("RGB", (40, 30))]), "is animated"),
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_picture_is_explained(name: str, tmp_path: Path) -> None:
    content, said = FILES[name]
    (tmp_path / name).write_bytes(content())
    with pytest.raises(UsageError, match=said) as caught:
        resolve_picture(str(tmp_path / name), "workload.image")
    assert str(caught.value).startswith("workload.image=")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("nowhere.png", "there is no such file"),
        ("no/where", "there is no such file"),
        (".", "brings no picture of that name along"),
        ("./", "this is a folder"),
        ("scenes", "Did you mean scene"),
        ("cat", r"such as \./cat"),
        ("", "brings no picture"),
        ("x" * 300 + ".png", "cannot be a path"),
        ("a\0b.png", "cannot be a path"),
        ("~nosuchuser/a.png", "cannot be a path"),
        (5, "give the path of a picture"),
        (True, "give the path of a picture"),
        (["a.png"], "give the path of a picture"),
        ({"path": "scene"}, "give the path of a picture"),
        ({"path": "scene", "content": 5}, "give the path of a picture"),
        ({"path": "scene", "content": "0" * 64}, "not the picture that the recipe was made with"),
    ],
)
def test_what_is_no_file_is_explained(given: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=said) as caught:
        resolve_picture(given, "workload.control")
    assert str(caught.value).startswith("workload.control=")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved(tmp_path / "mine.png")
    picture = Picture(path=str(file), content=sha256(file))

    def denied(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", denied)  # root may read everything
    with pytest.raises(UsageError, match="cannot be read: Permission denied"):
        resolve_picture(str(file), "workload.image")
    with pytest.raises(Refusal, match="mine.png cannot be read here: Permission denied"):
        open_picture(picture, (8, 8))


def test_damaged_files_never_end_otherwise(tmp_path: Path) -> None:
    chance = random.Random(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = [encoded("PNG", exif=exif), encoded("JPEG", exif=exif), encoded("WEBP", exif=exif)]
    refused = 0
    for number in range(300):
        data = bytearray(chance.choice(whole))
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(min(len(data), 150))] = chance.randrange(256)
        file = tmp_path / f"{number}.png"
        file.write_bytes(data[: chance.randrange(1, len(data) + 1)] if chance.random() < 0.3 else data)
        try:
            resolve_picture(str(file), "workload.image")
        except UsageError:
            refused += 1
    assert refused > 100


# What a pipeline gets.


def opened(path: Path, size: tuple[int, int], **options: Any) -> Image.Image:
    return open_picture(Picture(**resolve_picture(str(path), "workload.image")), size, **options)


@pytest.mark.parametrize(("name", "mode"), [("scene", "RGB"), ("mask", "L"), ("edges", "RGB")])
def test_a_shipped_picture_is_opened_in_any_size(name: str, mode: Any) -> None:
    picture = Picture(**resolve_picture(name, "workload.image"))
    small = open_picture(picture, (96, 64), mode)
    assert (small.size, small.mode) == ((96, 64), mode)
    assert small.convert("L").getextrema() != (0, 0)
    with Image.open(SHIPPED / f"{name}.png") as file:
        assert open_picture(picture, (SIDE, SIDE), mode).tobytes() == file.convert(mode).tobytes()


def test_a_mask_has_no_values_between_and_a_picture_has(tmp_path: Path) -> None:
    halves = Image.new("L", (10, 10))
    halves.paste(255, (5, 0, 10, 10))
    file = saved(tmp_path / "mask.png", halves)
    assert set(opened(file, (37, 23), mode="L").tobytes()) == {0, 255}
    assert len(set(opened(file, (37, 23)).tobytes())) > 2


FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}


@pytest.mark.parametrize("resample", [*FILTERS, None])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", ["scene", "mask"])
def test_a_filter_is_pillow_s(name: str, mode: Any, resample: Any) -> None:
    picture = Picture(**resolve_picture(name, "workload.image"))
    usual = "nearest" if mode == "L" else "lanczos"
    with Image.open(SHIPPED / f"{name}.png") as file:
        expected = file.convert(mode).resize((72, 104), FILTERS[resample or usual])
    assert open_picture(picture, (72, 104), mode, resample=resample).tobytes() == expected.tobytes()


def test_bicubic_is_what_a_bare_resize_of_pillow_does() -> None:
    with Image.open(SHIPPED / "scene.png") as file:
        page = file.convert("RGB").resize((64, 48))
    picture = Picture(**resolve_picture("scene", "workload.image"))
    assert open_picture(picture, (64, 48), resample="bicubic").tobytes() == page.tobytes()


@pytest.mark.parametrize("size", [(48, 48), (96, 32), (32, 96)])
@pytest.mark.parametrize("resize_mode", ["fill", "crop"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_another_shape_is_filled_or_cropped_as_diffusers_does(
    mode: Any, resize_mode: Any, size: tuple[int, int], tmp_path: Path
) -> None:
    with Image.open(SHIPPED / "scene.png") as file:
        wide = file.convert(mode).resize((200, 50))
    theirs = VaeImageProcessor(resample="bicubic").resize(wide, size[1], size[0], resize_mode=resize_mode)
    file = saved(tmp_path / "wide.png", wide)
    ours = opened(file, size, mode=mode, resample="bicubic", resize_mode=resize_mode)
    assert (ours.size, ours.mode, ours.tobytes()) == (size, mode, theirs.convert(mode).tobytes())
    assert ours.tobytes() != opened(file, size, mode=mode, resample="bicubic").tobytes()


def test_a_picture_too_narrow_to_keep_its_shape_is_refused(tmp_path: Path) -> None:
    file = saved(tmp_path / "line.png", Image.new("RGB", (200, 1)))
    with pytest.raises(Refusal, match="workload.resize_mode=fill: the picture line.png is too narrow for 64x64"):
        opened(file, (64, 64), resize_mode="fill")


def test_how_a_picture_is_resized_reaches_the_pipeline_and_the_id() -> None:
    def given(*words: str) -> tuple[str, Image.Image]:
        (request,) = compose_requests(["model=sd15", "workload=img2img", "hardware=cpu", *SMALL, *words])
        model = request.cell.recipe.model
        (stage,) = calls.calls_of_models([Img2Img()], [model], request.cell.workload)
        return request.cell.id, stage.arguments["image"][0]

    usual, spelt = given(), given("workload.resample=null", "workload.resize_mode=default")
    assert usual == spelt
    other, picture = given("workload.resample=bilinear")
    assert other != usual[0]
    with Image.open(SHIPPED / "scene.png") as file:
        assert picture.tobytes() == file.convert("RGB").resize((96, 64), Image.Resampling.BILINEAR).tobytes()
    assert given("workload.resize_mode=crop")[1].tobytes() != usual[1].tobytes()


SMALL = ("workload.width=96", "workload.height=64")


class Img2Img:
    """What a call is made for: the arguments of diffusers' class."""

    __call__ = StableDiffusionImg2ImgPipeline.__call__


def test_a_task_without_pictures_resizes_none() -> None:
    for words, remedy in (("workload.resample=bicubic", "null"), ("workload.resize_mode=crop", "default")):
        (request,) = compose_requests(["model=sd15", "hardware=cpu", words])
        (problem,) = make_plan(request.cell).problems
        assert problem.keys == (words,)
        assert remedy in problem.remedy


def test_a_picture_stands_upright(tmp_path: Path) -> None:
    wide = Image.new("RGB", (20, 10), "blue")
    wide.paste((255, 0, 0), (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # as cameras write it: to be turned by 90 degrees to the right
    turned = opened(saved(tmp_path / "turned.jpg", wide, exif=exif, quality=95, subsampling=0), (10, 20))
    assert turned.getpixel((5, 4))[0] > 200, "what was left is above"
    assert turned.getpixel((5, 15))[2] > 200


def test_what_is_transparent_is_white_and_black_in_a_mask(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (4, 4), (10, 200, 30, 0))
    clear.putpixel((0, 0), (255, 0, 0, 255))
    file = saved(tmp_path / "clear.png", clear)
    assert opened(file, (4, 4)).getpixel((0, 0)) == (255, 0, 0)
    assert opened(file, (4, 4)).getpixel((2, 2)) == (255, 255, 255)
    assert opened(file, (4, 4), mode="L").getpixel((2, 2)) == 0
    palette = saved(tmp_path / "palette.png", clear.quantize(4))
    assert opened(palette, (4, 4)).getpixel((2, 2)) == (255, 255, 255)
    keyed = saved(tmp_path / "keyed.png", Image.new("RGB", (4, 4), "red"), transparency=(255, 0, 0))
    assert opened(keyed, (4, 4)).getpixel((2, 2)) == (255, 255, 255)


def test_sixteen_bits_keep_their_range(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(1, 256).repeat(4, axis=0)
    file = saved(tmp_path / "depth.png", Image.fromarray(ramp))
    assert np.abs(np.asarray(opened(file, (256, 4), mode="L"), int)[0] - np.arange(256)).max() <= 1
    assert opened(file, (256, 4)).getpixel((128, 0)) == (128, 128, 128)


def test_a_jpeg_for_print(tmp_path: Path) -> None:
    red = opened(saved(tmp_path / "print.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0))), (8, 8)).getpixel((4, 4))
    assert red[0] > 200
    assert max(red[1:]) < 60


def test_a_jpeg_with_a_preview_inside_is_one_picture(tmp_path: Path) -> None:
    preview = Image.new("RGB", (4, 4), "blue")
    file = saved(
        tmp_path / "phone.jpg", Image.new("RGB", (8, 8), "red"), format="MPO", save_all=True, append_images=[preview]
    )
    with Image.open(file) as several:
        assert several.n_frames == 2
    assert opened(file, (8, 8)).getpixel((4, 4))[0] > 200


def test_a_file_that_changes_after_planning_is_refused_without_its_folder(tmp_path: Path) -> None:
    file = saved(tmp_path / "mine.png")
    picture = Picture(**resolve_picture(str(file), "workload.image"))
    saved(file, Image.new("RGB", (5, 5)))
    with pytest.raises(Refusal, match="mine.png is not the one") as caught:
        open_picture(picture, (8, 8))
    file.unlink()
    with pytest.raises(Refusal, match="mine.png cannot be read here: No such file") as gone:
        open_picture(picture, (8, 8))
    for error in (caught, gone):
        assert str(tmp_path) not in str(error.value), "the reason of a row is shared"


def test_looking_up_a_picture_imports_no_torch() -> None:
    code = (
        "import sys; from diffopt.config.workload import resolve_picture; resolve_picture('scene', 'workload.image');"
        "sys.exit(bool({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("size", "asked", "fit"),
    [
        ((400, 100), (64, 64), "workload.width=128 workload.height=32 is nearly its own"),
        ((512, 512), (64, 64), None),
        ((1500, 1000), (1216, 832), None),  # nearly the same
        ((64, 64), (128, 64), "workload.width=88 workload.height=88"),
        ((200, 40), (152, 32), "workload.width=160 workload.height=32"),
        ((200, 40), (160, 32), None),
    ],
)
def test_a_picture_that_is_stretched_to_another_shape_is_noted(
    tmp_path: Path, size: tuple[int, int], asked: tuple[int, int], fit: str | None
) -> None:
    Image.new("RGB", size).save(tmp_path / "mine.png")
    words = ["model=sd15", "workload=img2img", f"workload.image={tmp_path}/mine.png", "hardware=cpu"]
    sizes = [f"workload.width={asked[0]}", f"workload.height={asked[1]}"]
    (request,) = compose_requests([*words, *sizes])
    if fit is None:
        assert request.cell.notes == ()
    else:
        (note,) = request.cell.notes
        assert note.startswith(f"workload.image=mine.png: a picture of {size[0]}x{size[1]} is stretched to ")
        assert fit in note
    shipped = compose_requests([*words[:2], "hardware=cpu", *sizes])[0]
    assert shipped.cell.notes == ()
    for kept in ("crop", "fill"):
        assert compose_requests([*words, *sizes, f"workload.resize_mode={kept}"])[0].cell.notes == ()
