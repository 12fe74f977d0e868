"""Which library builds for which GPU; what is installed and which GPU is here are played."""

import pytest

from fuseline.serve.backends.engine import target as engine_target
from fuseline.serve.backends.engine.target import available_builder
from fuseline.serve.backends.gpu.cuda import Gpu
from fuseline.serve.errors import BackendUnavailableError, InputError


@pytest.fixture
def no_gpu(monkeypatch):
    def refuse():
        raise BackendUnavailableError("no NVIDIA driver is installed on this machine")

    monkeypatch.setattr(engine_target, "open_cuda", refuse)


def gpu_at_hand(monkeypatch, capability, installed):
    class FakeCuda:
        def gpu(self):
            return Gpu("a GPU", capability, 2**30)

    monkeypatch.setattr(engine_target, "open_cuda", FakeCuda)
    monkeypatch.setattr(engine_target, "is_installed", lambda library: library in installed)


@pytest.mark.parametrize("capability", ["sm90", "SM89", "CURRENT", "none", "89", ""])
def test_an_unknown_capability_is_refused_with_those_on_offer(capability, no_gpu, trt):
    with pytest.raises(InputError, match=f"{capability!r}, it builds for .*sm89"):
        available_builder(capability)


def test_without_a_gpu_nothing_builds_for_the_gpu_at_hand(no_gpu):
    with pytest.raises(BackendUnavailableError, match=r"no NVIDIA driver .*`fuseline engine PACKAGE --for sm89`"):
        available_builder(None)


def test_without_tensorrt_for_rtx_the_message_says_how_to_install_it(monkeypatch, no_gpu):
    monkeypatch.setattr(engine_target, "is_installed", lambda library: False)
    with pytest.raises(BackendUnavailableError, match=r"sm89 takes TensorRT for RTX: pip install 'fuseline\[rtx\]'"):
        available_builder("sm89")


def test_tensorrt_builds_for_the_gpu_at_hand_where_it_is_installed(monkeypatch):
    gpu_at_hand(monkeypatch, "sm90", {"tensorrt", "tensorrt_rtx"})
    for capability in (None, "sm90"):
        choice = available_builder(capability)
        assert (choice.library, choice.capability) == ("tensorrt", "sm90")


def test_tensorrt_for_rtx_builds_for_other_gpus_and_where_tensorrt_is_not_installed(monkeypatch, trt):
    gpu_at_hand(monkeypatch, "sm90", {"tensorrt", "tensorrt_rtx"})
    assert available_builder("sm89").library == "tensorrt_rtx"
    gpu_at_hand(monkeypatch, "sm89", {"tensorrt_rtx"})
    assert (available_builder(None).library, available_builder(None).capability) == ("tensorrt_rtx", "sm89")


def test_a_gpu_that_only_tensorrt_serves_says_so(monkeypatch, trt):
    gpu_at_hand(monkeypatch, "sm90", {"tensorrt_rtx"})
    with pytest.raises(BackendUnavailableError, match=r"the GPU here is sm90: pip install 'fuseline\[gpu\]'"):
        available_builder(None)


@pytest.mark.parametrize(("word", "setting"), [("current", "CURRENT"), ("portable", None)])
def test_a_gpu_that_tensorrt_for_rtx_does_not_list_is_tried_only_if_that_is_asked(monkeypatch, trt, word, setting):
    gpu_at_hand(monkeypatch, "sm90", {"tensorrt_rtx"})
    with pytest.raises(BackendUnavailableError, match=r"the GPU here is sm90: .*--for current"):
        available_builder(None)
    choice = available_builder(word)
    assert (choice.library, choice.capability, choice.setting) == ("tensorrt_rtx", "sm90", setting)


def test_the_words_for_the_gpu_at_hand_need_one(no_gpu, trt):
    for word in ("current", "portable"):
        with pytest.raises(BackendUnavailableError, match="no GPU to build for"):
            available_builder(word)


def test_tensorrt_itself_needs_no_such_word(monkeypatch, trt):
    gpu_at_hand(monkeypatch, "sm90", {"tensorrt", "tensorrt_rtx"})
    assert available_builder("current").library == "tensorrt"
    assert available_builder("portable").library == "tensorrt_rtx"
