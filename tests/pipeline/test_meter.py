"""Timing: exact on made-up marks, and on the real tiny pipeline the same pictures as without it."""

import inspect
import mmap
import time
from collections import Counter

import pytest
import torch
from PIL import Image
from support.rows import a_cell
from torch._dynamo.utils import counters

from diffopt.errors import DiffoptError
from diffopt.pipeline.build import build_pipelines
from diffopt.pipeline.meter import (
    HostClock,
    Meter,
    Part,
    Sample,
    _timed_part,
    compile_cache_use_in_worker,
)
from diffopt.pipeline.outputs import is_constant_picture, save_pictures
from diffopt.pipeline.peak_memory import ResidentPeak, peak_memory_meter
from diffopt.recipe.plan import make_plan
from diffopt.results.result import CompileCache

torch.set_num_threads(1)


def part(*marks):
    return _timed_part("denoise", list(marks), HostClock())


MARKS = (
    *(("encode begin", 0.0), ("encode end", 0.5), ("timesteps begin", 0.6), ("timesteps end", 1.0)),
    *(("step", 3.0), ("step", 4.0), ("step", 5.0), ("decode begin", 5.5), ("decode end", 7.5)),
)


def test_the_parts_of_a_call():
    expected = Part("denoise", iterations=3, iterations_per_second=1.0, text_encode=0.5, denoise=4.0, decode=2.0)
    assert part(*MARKS) == expected


def test_one_iteration_counts_from_the_start_of_denoising():
    assert part(("timesteps end", 1.0), ("step", 1.25)).iterations_per_second == 4.0


def test_parts_that_a_pipeline_lacks_are_none():
    found = part(("timesteps end", 1.0), ("step", 2.0))
    assert (found.text_encode, found.decode) == (None, None)


def test_decoding_in_several_calls_is_added_up():
    twice = (*MARKS, ("decode begin", 8.0), ("decode end", 9.0))
    assert part(*twice).decode == 3.0


def test_a_pipeline_that_never_steps_cannot_be_timed():
    with pytest.raises(DiffoptError, match="never called its scheduler"):
        part(("timesteps end", 1.0))


CELL = a_cell("workload.steps=3", "workload.batch_size=2", "workload.seed=7", "measure.samples=2")


@pytest.fixture(scope="module")
def pipe():
    (only,) = build_pipelines(make_plan(CELL))
    return only


def test_pictures_are_those_of_a_plain_call_and_nothing_is_left_on_the_pipeline(pipe):
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in (7, 8)]
    prompts = CELL.workload.batch_prompts
    sizes = {"height": CELL.workload.height, "width": CELL.workload.width, "num_inference_steps": 3}
    guidance = CELL.workload.guidance
    plain = pipe(prompts, generator=generators, guidance_scale=guidance, **sizes).images
    before = [set(vars(owner)) for owner in (pipe, pipe.scheduler, pipe.vae)]
    meter = Meter((pipe,), CELL)
    timed = meter.call()
    assert [p.tobytes() for p in meter.outputs] == [p.tobytes() for p in plain]
    assert [set(vars(owner)) for owner in (pipe, pipe.scheduler, pipe.vae)] == before
    (stage,) = timed.parts
    assert stage.iterations == 3
    parts = stage.text_encode + stage.denoise + stage.decode
    assert 0 < parts <= timed.latency


def test_a_replaced_method_is_put_back_and_keeps_its_signature(pipe):
    inner = pipe.scheduler.step
    pipe.vae.decode = mine = pipe.vae.decode
    meter = Meter((pipe,), CELL)
    with meter._marking():
        assert inspect.signature(pipe.scheduler.step) == inspect.signature(inner)
        assert pipe.vae.decode is not mine
    assert pipe.vae.decode is mine
    del pipe.vae.decode
    assert pipe.scheduler.step == inner


def test_pndm_makes_one_call_more_and_all_are_counted():
    cell = a_cell("workload.steps=4", "scheduler=pndm")
    assert Meter(build_pipelines(make_plan(cell)), cell).call().parts[0].iterations == 5


def with_measure(**changes):
    return CELL.model_copy(update={"measure": CELL.measure.model_copy(update=changes)})


@pytest.mark.parametrize(
    ("protocol", "calls"),
    [
        ({"samples": 4, "max_samples": 9, "seconds": 0.0}, 4),
        ({"samples": 2, "max_samples": 3, "seconds": 3600.0}, 3),
        ({"samples": 2, "max_samples": 9, "seconds": 0.05}, 5),
    ],
)
def test_how_many_samples(pipe, monkeypatch, protocol, calls):
    meter = Meter((pipe,), with_measure(**protocol))
    now = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: next(now) / 80)
    monkeypatch.setattr(meter, "call", lambda: "sample")
    assert len(meter.samples()) == calls


def test_a_recompile_in_the_timed_part_raises(pipe, monkeypatch):
    meter = Meter((pipe,), CELL)
    sizes = iter((2, 3, 4))
    double = torch.compile(lambda x: x * 2, backend="eager", dynamic=False)
    double(torch.ones(2))
    monkeypatch.setattr(meter, "call", lambda: double(torch.ones(next(sizes))))
    with pytest.raises(RuntimeError, match="Detected recompile"):
        meter.samples()


def samples_of(*latencies):
    return [Sample(latency, (Part("denoise", 3, 1.0, None, 1.0, None),)) for latency in latencies]


def test_what_makes_a_row_not_valid(pipe):
    meter = Meter((pipe,), with_measure(max_variation=0.1))
    meter.call()
    assert meter.noise(samples_of(1.0, 1.01, 0.99)) == []
    (noisy,) = meter.noise(samples_of(1.0, 2.0, 1.0))
    said = "latency varies by 43.3% (standard deviation over mean), more than 10.0%"
    assert noisy.startswith(f"{said}: the same command measures it again")
    (noisy,) = meter.noise(samples_of(1.0, 2.0, 1.0), "the load average was 9.0 on 2 cores")
    assert noisy.startswith(f"{said} (the load average was 9.0 on 2 cores): the same command")
    assert meter.noise(samples_of(1.0, 1.01, 0.99), "the load average was 9.0 on 2 cores") == []
    assert meter.complaints() == []
    meter.latents = torch.tensor([1.0, float("nan")])
    meter.outputs = [Image.new("RGB", (4, 4)), Image.effect_noise((4, 4), 50).convert("RGB")]
    assert meter.complaints() == [
        "the latents of the last sample are not finite",
        "every pixel is the same in picture 0",
    ]


def test_the_device_is_looked_at_while_it_works_and_nothing_is_left(pipe):
    meter = Meter((pipe,), CELL)
    meter.call()
    steps = []
    inner = pipe.scheduler.step
    pipe.scheduler.step = lambda *args, **kwargs: steps.append("step") or inner(*args, **kwargs)
    mine = pipe.scheduler.step
    try:
        assert meter.observe(lambda: len(steps)) == 2
        assert len(steps) == 3
        assert pipe.scheduler.step is mine
    finally:
        del pipe.scheduler.step


def test_what_the_compile_cache_gave(monkeypatch):
    found = Counter()
    monkeypatch.setitem(counters, "inductor", found)
    monkeypatch.setitem(counters, "aot_packages", Counter())
    assert compile_cache_use_in_worker() is None
    found.update(fxgraph_cache_hit=3)
    assert compile_cache_use_in_worker() == CompileCache(hits=3, misses=0)
    found.update(fxgraph_cache_miss=2, fxgraph_cache_bypass=1)
    assert compile_cache_use_in_worker() == CompileCache(hits=3, misses=3)


def test_a_gpu_tells_what_it_reserved_and_the_cpu_nothing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 7)
    assert peak_memory_meter("cuda").reserved() == 7
    assert peak_memory_meter("cpu").reserved() is None


def test_constant_pictures():
    assert is_constant_picture(Image.new("RGB", (8, 8), (1, 2, 3)))
    assert is_constant_picture(Image.new("L", (8, 8)))
    picture = Image.new("RGB", (8, 8))
    picture.putpixel((3, 3), (0, 0, 1))
    assert not is_constant_picture(picture)


def test_pictures_say_what_made_them(tmp_path):
    pictures = [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(2)]
    assert save_pictures(pictures, tmp_path, "abc", (7, 8)) == ("0.png", "1.png")
    with Image.open(tmp_path / "1.png") as saved:
        assert saved.info == {"diffopt:cell_id": "abc", "diffopt:seed": "8"}
        assert saved.tobytes() == pictures[1].tobytes()


def test_resident_peak_sees_what_came_and_went():
    meter = ResidentPeak()
    meter.reset()
    before = meter.peak()
    with mmap.mmap(-1, 64 * 2**20) as block:  # a bytearray may be given pages that were resident before
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
    peak = meter.peak()
    assert before is not None
    assert peak - before > 48 * 2**20
    meter.reset()
    assert meter.peak() < peak - 48 * 2**20


def test_a_peak_that_cannot_be_started_anew_is_not_told(tmp_path):
    (tmp_path / "status").write_text("VmPeak:	 9 kB\nVmHWM:	 12 kB\n")
    meter = ResidentPeak(tmp_path)
    assert meter.peak() == 12 * 1024  # since the process began
    (tmp_path / "clear_refs").mkdir()
    meter.reset()
    assert meter.peak() is None
