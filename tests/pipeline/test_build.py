"""Load with what the LOAD steps ask for, apply in order, and say which step failed."""

from types import SimpleNamespace

import pytest
from support.rows import a_cell

from diffopt.errors import NoEffect
from diffopt.pipeline import load
from diffopt.pipeline.build import build_pipelines, verify_steps
from diffopt.recipe.plan import Plan
from diffopt.results.result import StepEffect
from diffopt.schema.step import Effect, Order

(SITE,) = a_cell().sites


class Fake:
    traits = frozenset()

    def __init__(self, kind, log, *, kwargs=None, error=None):
        self.kind, self.log, self.kwargs, self.error = kind, log, kwargs or {}, error
        self.order = Order.LOAD if kwargs else Order.FUSE

    def load_kwargs(self, site):
        assert site == SITE
        return self.kwargs

    def apply(self, pipe, site):
        assert site == SITE
        if self.error:
            raise self.error
        self.log.append((self.kind, pipe.name))

    def verify(self, pipe, site):
        if self.error:
            raise self.error
        return Effect(f"{self.kind} done", {"modules": 3})


@pytest.fixture
def loads(monkeypatch):
    """Stands in for loading; returns what it was called with."""
    calls = []

    def load_pipeline(model, task, **kwargs):
        calls.append((model.name, task, kwargs))
        return SimpleNamespace(name="pipe")

    monkeypatch.setattr(load, "load_pipeline", load_pipeline)
    return calls


def plan(*steps):
    return Plan(cell=a_cell(), steps=tuple(steps), problems=(), notes=())


def test_steps_are_applied_in_the_plans_order_to_what_was_loaded(loads):
    log, phases = [], []
    steps = [("precision", Fake("fp", log, kwargs={"dtype": {"default": "d"}})), ("fuse", Fake("qkv", log))]
    (pipe,) = build_pipelines(plan(*steps), on_phase=phases.append)
    assert loads == [("tiny", "txt2img", {"device": "cpu", "dtype": {"default": "d"}})]
    assert log == [("fp", "pipe"), ("qkv", "pipe")]
    assert phases == ["load", "optimize"]
    assert pipe.name == "pipe"


def test_two_steps_may_not_set_one_argument(loads):
    steps = [("precision", Fake("fp", [], kwargs={"dtype": 1})), ("quant", Fake("q", [], kwargs={"dtype": 2}))]
    with pytest.raises(ValueError, match=r"quant \(q\) sets dtype, which another step sets already"):
        build_pipelines(plan(*steps))
    assert loads == []


def test_an_error_names_its_step_and_keeps_its_type(loads):
    with pytest.raises(KeyError) as caught:
        build_pipelines(plan(("fuse", Fake("qkv", [], error=KeyError("x")))))
    assert caught.value.__notes__ == ["applying fuse (qkv)"]


def test_every_step_gives_its_proof(loads):
    pipes = build_pipelines(plan())
    assert verify_steps(plan(("fuse", Fake("qkv", []))), pipes) == (
        StepEffect(group="fuse", kind="qkv", summary="qkv done", numbers={"modules": 3}),
    )
    with pytest.raises(NoEffect) as caught:
        verify_steps(plan(("fuse", Fake("qkv", [], error=NoEffect("0 modules")))), pipes)
    assert caught.value.__notes__ == ["verifying fuse (qkv)"]
