"""Training the built-in model: the loop is reproducible and resumable, and every part runs."""

import json

import pytest
import torch

from scripts.maintain.tiny.fitting import Machine, Schedule, fit

TRUTH = torch.tensor([[1.0, -2.0, 3.0]])


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def draw(step, generator):
    x = torch.randn(8, 3, generator=generator)
    return {"x": x, "y": x @ TRUTH.T}


def loss(model, batch):
    return (model(batch["x"]).float() - batch["y"]).square().mean()


def train(folder, *, steps=60, shards=2, interrupt=None, seed=0, every=2):
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)

    def draw_until(step, generator):
        if step == interrupt:
            raise KeyboardInterrupt
        return draw(step, generator)

    schedule = Schedule(steps=steps, batch=8, peak_rate=0.1, warmup=5, average=0.9, seed=seed)
    model = torch.nn.Linear(3, 1)
    return fit(
        "line", model, draw_until, loss, schedule=schedule, machine=Machine("cpu", shards), folder=folder, every=every
    )


def losses(folder):
    return json.loads((folder / "line_losses.json").read_text())


def test_the_loop_learns_and_returns_averaged_weights(tmp_path, capsys):
    trained = train(tmp_path / "a", steps=200)
    assert torch.allclose(trained.weight, TRUTH, atol=0.1)
    assert not trained.training
    assert not trained.weight.requires_grad
    assert len(losses(tmp_path / "a")) == 200
    assert "line    200/200 loss" in capsys.readouterr().out


def test_a_second_run_is_the_same_and_another_seed_is_not(tmp_path):
    first, second, other = (train(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert torch.equal(first.weight, second.weight)
    assert losses(tmp_path / "a") != losses(tmp_path / "c")
    assert not torch.equal(first.weight, other.weight)


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", interrupt=33)
    assert len(losses(tmp_path / "stopped")) == 30  # the last checkpoint
    resumed = train(tmp_path / "stopped")
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert torch.equal(resumed.weight, whole.weight)


def test_shards_change_the_rounding_only(tmp_path):
    one, two = (train(tmp_path / str(shards), shards=shards, steps=20) for shards in (1, 2))
    assert torch.allclose(one.weight, two.weight, atol=0.05)  # products are rounded to bfloat16


def test_the_rate_rises_and_falls():
    schedule = Schedule(steps=100, batch=1, peak_rate=1.0, warmup=10)
    rates = [schedule.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0, abs=0.05)
    assert rates[-1] == pytest.approx(0.02, abs=0.01)
    cooled = Schedule(steps=100, batch=1, peak_rate=1.0, warmup=10, horizon=200, cooldown=40)
    assert cooled.rate(30) == Schedule(steps=200, batch=1, peak_rate=1.0, warmup=10).rate(30)
    assert cooled.rate(99) == pytest.approx(cooled.rate(60) / 40, rel=0.5)


def test_checkpoints_of_other_settings_are_refused(tmp_path):
    from scripts.maintain.tiny.train import FULL, SMOKE, _same_plan

    _same_plan(tmp_path, 10, FULL, Machine())
    _same_plan(tmp_path, 10, FULL, Machine())
    with pytest.raises(SystemExit, match="other settings"):
        _same_plan(tmp_path, 10, SMOKE, Machine())


def test_latents_are_normalised_without_changing_the_pictures():
    from scripts.maintain.tiny.autoencoder import _normalise, decode, encode, make_drawings, paint_all
    from scripts.maintain.tiny.networks import make_autoencoder

    torch.manual_seed(0)
    model = make_autoencoder().eval().requires_grad_(False)
    pictures = paint_all(make_drawings(16, seed=0), seed=0)
    before = decode(model, encode(model, pictures, Machine())).astype(int)
    _normalise(model, pictures)
    latents = encode(model, pictures, Machine())
    assert latents.mean((0, 2, 3)).abs().max() < 1e-3
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 1e-3
    assert abs(decode(model, latents).astype(int) - before).max() <= 1


@pytest.mark.slow
def test_a_smoke_run_goes_through_every_part_and_is_reproducible(tmp_path, capsys):
    from diffusers import StableDiffusionPipeline

    from scripts.maintain.tiny.train import main

    for name in ("a", "b"):
        main(["--smoke", "--work", str(tmp_path / name), "--out", str(tmp_path / name / "model")])
    assert "reconstructions that the checker accepts" in capsys.readouterr().out
    for part, steps in (("autoencoder", 6), ("denoiser", 6), ("decoder", 4)):
        first, second = (json.loads((tmp_path / name / f"{part}_losses.json").read_text()) for name in ("a", "b"))
        assert len(first) == steps
        assert first == pytest.approx(second, rel=1e-3)
    folder = tmp_path / "a" / "model"
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 8e6
    pipe = StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    assert pipe("a red star on a white background", num_inference_steps=1).images[0].size == (64, 64)
