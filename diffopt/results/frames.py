"""Where the pictures of a row lie as they were drawn: a picture is a PNG, a video a folder of PNGs beside its GIF."""

from __future__ import annotations

from pathlib import Path

from diffopt.machine.files import refuse_link


def frames_folder(folder: Path, name: str) -> Path:
    """The folder of a video's frames; ``name``: its entry in ``artifacts.pictures``, such as ``0.gif``."""
    return folder / Path(name).stem


def lossless_pictures(folder: Path, name: str) -> list[Path]:
    """The picture itself, or all frames of a video in their order; none of a row from before frames were kept.

    Raises UsageError where the folder of the frames is a link.
    """
    if name.endswith(".png"):
        return [folder / name]
    frames = frames_folder(folder, name)
    refuse_link(folder, frames)
    return sorted(frames.glob("*.png"))


def frame_folders(folder: Path) -> list[Path]:
    """The folders of frames in a row's folder, or links in their place; only they are named by numbers."""
    return [path for path in folder.iterdir() if path.name.isdigit() and (path.is_symlink() or path.is_dir())]
