"""What an exception means for a row."""

import pytest

from diffopt.errors import NoEffect, Refusal
from diffopt.machine.paths import source_in_words
from diffopt.pipeline import failure
from diffopt.pipeline.failure import describe_pipeline_error, status_of_pipeline_error

CPU_OOM = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"


def raised(error, cause=None):
    try:
        raise error from cause
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "cause", "status"),
    [
        (MemoryError(), None, "oom"),
        (RuntimeError(CPU_OOM), None, "oom"),
        (RuntimeError("CUDA error: out of memory"), None, "oom"),
        (ValueError("compiling failed"), RuntimeError(CPU_OOM), "oom"),
        (ValueError("out of memory is not what happened"), None, "error"),
        (Refusal("no"), None, "refused"),
        (NoEffect("no"), None, "error"),
        (RuntimeError("else"), None, "error"),
    ],
)
def test_status(error, cause, status):
    assert status_of_pipeline_error(raised(error, cause)) == status


def test_torchs_own_out_of_memory():
    import torch

    assert (
        status_of_pipeline_error(raised(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))) == "oom"
    )


def test_an_error_says_what_when_and_where():
    error = raised(KeyError("conv_in"))
    error.add_note("applying fuse (qkv)")
    assert describe_pipeline_error(error).startswith("applying fuse (qkv): KeyError: 'conv_in' (at test_failure.py:")


def test_frames_inside_torch_are_left_out():
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.nn.Linear(2, 2)(torch.ones(3))
    assert "(at test_failure.py:" in describe_pipeline_error(caught.value)


@pytest.mark.parametrize("folder", ["diffopt", "torch", "site-package"])
def test_a_place_is_the_same_in_a_folder_of_any_name(folder, tmp_path):
    """Such as a clone in a folder called diffopt, or one's own code in one called torch."""
    path = tmp_path / folder / "mine.py"
    path.parent.mkdir()
    path.write_text("def fails():\n    raise KeyError('conv_in')\n")
    space = {}
    exec(compile(path.read_text(), str(path), "exec"), space)
    with pytest.raises(KeyError) as caught:
        space["fails"]()
    assert describe_pipeline_error(caught.value) == "KeyError: 'conv_in' (at mine.py:2 in fails)"


def test_a_source_is_told_from_its_package_on():
    assert source_in_words(failure.__file__) == "diffopt/pipeline/failure.py"
    assert source_in_words("/x/lib/python3.12/site-packages/diffusers/models/unet.py") == "diffusers/models/unet.py"
    assert source_in_words("/home/someone/diffopt/mine.py") == "mine.py"
    assert source_in_words("<string>") == "<string>"


def test_ours_need_no_type_and_no_place():
    error = raised(NoEffect("0 modules fused"))
    error.add_note("verifying fuse (qkv)")
    assert describe_pipeline_error(error) == "verifying fuse (qkv): no effect: 0 modules fused"
    assert describe_pipeline_error(raised(Refusal("no such package"))) == "no such package"


def test_one_paragraph_of_bounded_length():
    text = describe_pipeline_error(raised(ValueError("first line\nsecond line\n\nanother paragraph")))
    assert "first line second line (at" in text
    assert "another" not in text
    assert len(describe_pipeline_error(raised(ValueError("x" * 5000)))) < 800


def test_a_recompile_names_its_place_without_this_machines_folders():
    error = RuntimeError(
        "Detected recompile when torch.compile stance is 'fail_on_recompile'. filename: "
        "'/home/x/lib/python3.11/site-packages/diffusers/models/unets/unet.py', function name: 'forward', "
        "line number: 1037\n    triggered by the following guard failure(s):\n- size"
    )
    text = describe_pipeline_error(raised(error))
    assert "recompiled in the timed part, at diffusers/models/unets/unet.py:1037 in forward" in text
    assert "/home" not in text
