"""How far the pictures of a cell are from its reference's, what that is called, and whether it is accepted."""

from __future__ import annotations

from functools import cache
from typing import Literal, get_args

from diffopt.machine import plain_yaml
from diffopt.machine.paths import shipped_conf
from diffopt.schema.quality import Tier
from diffopt.schema.record import Frozen

PictureVerdict = Literal["identical", "within noise", "close", "changed", "broken"]
VERDICTS: tuple[PictureVerdict, ...] = get_args(PictureVerdict)  # from the best to the worst


class MeanAndWorst(Frozen):
    """Of one metric over all pictures, and all frames of videos."""

    mean: float
    worst: float


class Distance(Frozen):
    """Between pictures and those of another cell, one by one."""

    equal: int  # pictures with the same values
    flip: MeanAndWorst  # FLIP (LDR, 67 pixels per degree), 0 to 1, less is nearer
    psnr: MeanAndWorst | None  # dB, more is nearer: of the mean, and of the largest, squared error; None: that is 0
    ssim: MeanAndWorst  # to 1, more is nearer
    ms_ssim: MeanAndWorst | None  # likewise; None: a side is less than 176 pixels
    latents_cosine: MeanAndWorst  # of the final latents; to 1, more is nearer
    latents_error: MeanAndWorst  # norm of their difference over that of the other's, less is nearer
    flicker: MeanAndWorst | None = None  # of videos: mean absolute difference of the changes from frame to frame
    flip_by_picture: tuple[float, ...] = ()  # in the order of the pictures; of a video that of its worst frame
    worst_frames: tuple[int, ...] = ()  # likewise, which frame that is; 0 of a picture


class Floor(Frozen):
    """The reference's distance to itself under a change that nobody calls an optimization."""

    changed: str  # attention, precision
    distance: Distance | None
    reason: str | None = None  # why there is none


class QualityFigures(Frozen):
    """What is known of a cell's pictures."""

    reference: str | None = None  # the id of its pictures; None: there are none
    is_reference: bool = False  # the cell is its own reference, drawn by another process: a distance of 0 is no floor
    pictures: tuple[str, ...] = ()  # files in the folder ``quality`` of the row
    maps: tuple[str, ...] = ()  # likewise, where each of them differs; of a video its worst frame
    distance: Distance | None = None
    reason: str | None = None  # why there is no distance
    settled: bool = True  # false: another try may find one
    is_own_floor: bool = False  # it changes nothing that is called an optimization, so it is one of its own floors
    floors: tuple[Floor, ...] = ()
    accuracy: float | None = None  # share of the prompts that are drawn as asked, where that can be told
    accuracy_of_reference: float | None = None
    verdict: PictureVerdict | None = None
    because: str = ""
    thresholds: int | None = None  # version
    seconds: float | None = None  # of drawing and comparing, in the cell's own process


class _Noise(Frozen):
    floors: float
    flip: float
    worst_flip: float
    latents_error: float


class _Limits(Frozen):
    flip: float
    worst_flip: float


class _Broken(Frozen):
    accuracy_lost: float


class Thresholds(Frozen):
    """What separates the verdicts; the file has the reason for each number."""

    version: int
    within_noise: _Noise
    close: _Limits
    changed: _Limits
    broken: _Broken
    tiers: dict[Tier, tuple[PictureVerdict, ...]]


@cache
def shipped_thresholds() -> Thresholds:
    """``conf/thresholds.yaml``."""
    return Thresholds.from_plain(plain_yaml.read_plain_yaml(shipped_conf() / "thresholds.yaml")[0])


def with_verdict(found: QualityFigures, thresholds: Thresholds) -> QualityFigures:
    """The figures with what they are called and why; unchanged where there is no distance."""
    if found.distance is None:
        return found
    verdict, because = _verdict(found, found.distance, thresholds)
    return found.model_copy(update={"verdict": verdict, "because": because, "thresholds": thresholds.version})


def is_accepted(found: QualityFigures, tier: Tier, thresholds: Thresholds) -> bool:
    """Whether a tier has the verdict; no verdict is in none."""
    return found.verdict in thresholds.tiers[tier]


def flip_of_floors(found: QualityFigures) -> float | None:
    """The largest mean FLIP of the floors; None where there is no floor."""
    return max((floor.distance.flip.mean for floor in found.floors if floor.distance is not None), default=None)


def _noise(found: QualityFigures, limits: Thresholds) -> tuple[float, float, float]:
    """Up to which mean and worst FLIP, and error of the latents, a distance is noise; pictures never beyond close."""
    noise, close = limits.within_noise, limits.close
    known = [floor.distance for floor in found.floors if floor.distance is not None]
    flips = max((each.flip.mean for each in known), default=0.0), max((each.flip.worst for each in known), default=0.0)
    error = max((each.latents_error.mean for each in known), default=0.0)
    return (
        min(close.flip, max(noise.flip, noise.floors * flips[0])),
        min(close.worst_flip, max(noise.worst_flip, noise.floors * flips[1])),
        max(noise.latents_error, noise.floors * error),
    )


def _verdict(found: QualityFigures, distance: Distance, limits: Thresholds) -> tuple[PictureVerdict, str]:
    lost = (found.accuracy_of_reference or 0.0) - (found.accuracy or 0.0)
    if found.accuracy is not None and lost > limits.broken.accuracy_lost:
        had = f"of the reference's {found.accuracy_of_reference:.0%}"
        return "broken", f"{found.accuracy:.0%} of the prompts are drawn as asked, {had}"
    flip, error = distance.flip, distance.latents_error
    if distance.flip.worst == 0 and distance.latents_error.worst == 0:
        return "identical", "every picture and every latent is the same"
    seen = f"FLIP {flip.mean:.4f} (worst {flip.worst:.4f}), latents {error.mean:.1e}"
    most, worst, most_error = _noise(found, limits)
    if flip.mean <= most and flip.worst <= worst and error.mean <= most_error:
        own = ", of which the cell itself is one" if found.is_own_floor else ""
        return "within noise", f"{seen}; noise is up to {most:.4f} (worst {worst:.4f}) and {most_error:.1e}{own}"
    levels: tuple[tuple[PictureVerdict, _Limits], ...] = (("close", limits.close), ("changed", limits.changed))
    for verdict, limit in levels:
        if flip.mean <= limit.flip and flip.worst <= limit.worst_flip:
            return verdict, f"{seen}; {verdict} is up to {limit.flip:g} (worst {limit.worst_flip:g})"
    return "broken", f"{seen}; more than {limits.changed.flip:g} (worst {limits.changed.worst_flip:g})"
