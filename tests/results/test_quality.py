"""What distances are called, what is accepted, and what a table says of it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from support.rows import a_cell, a_result

from diffopt.machine import plain_yaml
from diffopt.machine.paths import shipped_conf
from diffopt.results.quality import (
    VERDICTS,
    Distance,
    Floor,
    MeanAndWorst,
    QualityFigures,
    is_accepted,
    shipped_thresholds,
    with_verdict,
)
from diffopt.results.result import Result
from diffopt.results.table import results_table

LIMITS = shipped_thresholds()


def both(mean: float, worst: float | None = None) -> MeanAndWorst:
    return MeanAndWorst(mean=mean, worst=mean if worst is None else worst)


def a_distance(flip: float = 0.0, error: float = 0.0, worst: float | None = None) -> Distance:
    return Distance(
        equal=0 if flip else 4,
        flip=both(flip, worst),
        psnr=both(40.0) if flip else None,
        ssim=both(0.9),
        ms_ssim=None,
        latents_cosine=both(1.0),
        latents_error=both(error),
        flip_by_picture=(flip,) * 4,
    )


def judged(distance: Distance | None, *floors: Distance, **changes: Any) -> QualityFigures:
    found = [Floor(changed="attention", distance=floor) for floor in floors]
    return with_verdict(QualityFigures(reference="r", distance=distance, floors=tuple(found), **changes), LIMITS)


@pytest.mark.parametrize(
    ("distance", "floors", "verdict"),
    [
        (a_distance(), [], "identical"),
        (a_distance(0.0, 5e-5), [], "within noise"),  # no picture differs, the latents do
        (a_distance(0.0009, 5e-5), [], "within noise"),
        (a_distance(0.0009, 2e-4), [], "close"),
        (a_distance(0.0009, 2e-4), [a_distance(0.0, 1e-4)], "within noise"),
        (a_distance(0.019, 0.01), [a_distance(0.01, 0.01)], "within noise"),
        (a_distance(0.021, 0.01), [a_distance(0.01, 0.01)], "close"),
        (a_distance(0.021, 0.01), [a_distance(0.01, 0.01), a_distance(0.02, 0.01)], "within noise"),
        (a_distance(0.015, 0.01, worst=0.05), [a_distance(0.01, 0.01, worst=0.02)], "close"),  # one is further off
        (a_distance(0.07, 0.01), [a_distance(0.2, 0.3)], "changed"),  # a floor beyond close makes no more noise
        (a_distance(0.05, 0.1), [], "close"),
        (a_distance(0.05, 0.1, worst=0.081), [], "changed"),
        (a_distance(0.051, 0.1), [], "changed"),
        (a_distance(0.18, 0.1), [], "changed"),
        (a_distance(0.181, 0.1), [], "broken"),
        (a_distance(0.05, 0.1, worst=0.181), [], "broken"),
    ],
)
def test_a_distance_is_called_by_the_thresholds(distance: Distance, floors: list[Distance], verdict: str) -> None:
    found = judged(distance, *floors)
    assert (found.verdict, found.thresholds) == (verdict, LIMITS.version)
    assert found.because


def test_prompts_that_are_not_drawn_any_more_are_worse_than_any_distance() -> None:
    found = judged(a_distance(0.0009, 1e-5), accuracy=0.9, accuracy_of_reference=1.0)
    assert (found.verdict, found.because) == (
        "broken",
        "90% of the prompts are drawn as asked, of the reference's 100%",
    )
    assert judged(a_distance(0.0009, 1e-5), accuracy=0.99, accuracy_of_reference=1.0).verdict == "within noise"


def test_without_a_distance_there_is_no_verdict_and_nothing_is_accepted() -> None:
    found = judged(None, reason="no reference: oom at load: too large")
    assert (found.verdict, found.thresholds) == (None, None)
    assert not any(is_accepted(found, tier, LIMITS) for tier in LIMITS.tiers)


def test_each_tier_accepts_what_the_one_before_it_does_and_more() -> None:
    accepted = [LIMITS.tiers[tier] for tier in ("lossless", "high", "preview")]
    assert [VERDICTS[: len(verdicts)] for verdicts in accepted] == accepted
    assert [len(verdicts) for verdicts in accepted] == [2, 3, 4]


def test_each_number_of_the_thresholds_has_its_reason_beside_it() -> None:
    path = shipped_conf() / "thresholds.yaml"
    numbers, before = [], ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if re.match(r"  \w+: [\d.e-]+", line):
            numbers.append(line.split(":")[0].strip())
            told = "#" in line or before.strip().startswith("#")
            assert told or line == "  worst_flip: 0.18", line  # whose reason stands with the one before it
        before = line
    assert numbers == [*("floors", "flip", "worst_flip", "latents_error"), *("flip", "worst_flip") * 2, "accuracy_lost"]
    assert plain_yaml.read_plain_yaml(path)[0]["version"] == LIMITS.version


def a_row(required: str | None = None, found: QualityFigures | None = None, **changes: Any) -> Result:
    words = ["quality=fast", *([f"quality.require={required}"] if required else [])]
    return a_result(a_cell(*words), quality=found, **changes)


def test_a_row_that_is_worse_than_asked_for_is_rejected() -> None:
    close = judged(a_distance(0.03, 0.1))
    assert a_row(None, close).status_in_words == "ok"
    assert a_row("high", close).status_in_words == a_row("preview", close).status_in_words == "ok"
    assert a_row("lossless", close).status_in_words == "ok, rejected"
    assert a_row("lossless", close, valid=False).status_in_words == "ok, not valid, rejected"
    assert a_row("preview", judged(None, reason="no reference")).rejected
    assert a_row("preview").rejected
    assert a_row("preview", status="oom", reason="x").status_in_words == "oom"


def test_the_table_has_the_distance_by_itself_and_in_floors() -> None:
    found = judged(a_distance(0.021, 0.01), a_distance(0.014, 0.01), accuracy=1.0, accuracy_of_reference=1.0)
    shown = results_table([a_row(None, found), a_result()])
    at = {header: index for index, header in enumerate(shown.headers)}
    columns = ("pictures", "FLIP", "floors", "PSNR dB", "accuracy")
    assert [shown.rows[0][at[name]] for name in columns] == ["within noise", "0.0210", "1.5", "40.0", "100%"]
    assert [shown.rows[1][at[name]] for name in columns] == [""] * 5
    assert any("version 1 of the thresholds" in line for line in shown.foot)
    assert "pictures" not in results_table([a_result()]).headers


def test_the_row_of_the_reference_itself_says_so() -> None:
    shown = results_table([a_row(None, judged(a_distance(), is_reference=True))])
    assert "reference" in shown.rows[0]
    assert any("its distance is no floor" in line for line in shown.foot)


def test_a_cell_that_is_one_of_its_own_floors_says_so() -> None:
    found = judged(a_distance(0.02, 0.01), a_distance(0.02, 0.01), is_own_floor=True)
    assert (found.verdict, "of which the cell itself is one" in found.because) == ("within noise", True)


def test_why_nothing_was_compared_stands_below_the_table() -> None:
    shown = results_table([a_row(None, judged(None, reason="no reference: oom at load: too large"))])
    assert shown.foot[-1] == "no reference: oom at load: too large"
