"""Devices and number formats: what is chosen, what is refused, what is said; the loss scale against the library's."""

import pytest
import torch

from lorabel.errors import ConfigError
from lorabel.training import precision
from lorabel.training.precision import LossScale, choose_compute


def machine(monkeypatch, *, cuda=False, mps=False, bf16=False):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)


@pytest.mark.parametrize(
    ("has", "device", "format"),
    [
        ({}, "cpu", "fp32"),
        ({"bf16": True}, "cpu", "bf16"),
        ({"cuda": True, "bf16": True}, "cuda", "bf16"),
        ({"cuda": True}, "cuda", "fp16"),
        ({"mps": True}, "mps", "fp32"),
        ({"cuda": True, "mps": True, "bf16": True}, "cuda", "bf16"),
    ],
)
def test_auto_takes_what_the_machine_has(has, device, format, monkeypatch):
    machine(monkeypatch, **has)
    found = choose_compute("auto", "auto")
    assert (found.device.type, found.precision, found.deviations) == (device, format, ())
    assert found.dtype == precision.DTYPES[format]


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused_with_what_is(device, monkeypatch):
    machine(monkeypatch)
    with pytest.raises(ConfigError, match=rf"training\.device: not available, got '{device}'; expected one of cpu\. .*lorabel doctor"):
        choose_compute(device, "auto")


@pytest.mark.parametrize(("has", "instead"), [({}, "fp32"), ({"bf16": True}, "bf16")])
def test_float16_without_cuda_is_a_deviation_in_words(has, instead, monkeypatch):
    machine(monkeypatch, **has)
    found = choose_compute("cpu", "fp16")
    assert (found.precision, found.deviations) == (instead, (f"precision fp16 needs CUDA; {instead} was used on cpu",))


def test_what_is_asked_for_is_taken(monkeypatch):
    machine(monkeypatch, cuda=True)
    assert choose_compute("cuda", "fp16").precision == "fp16"
    assert choose_compute("cpu", "bf16").precision == "bf16"
    assert choose_compute("cpu", "fp32").deviations == ()


def test_the_loss_scale_follows_the_librarys():
    ours = LossScale(True)
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    theirs = torch.amp.GradScaler("cpu", init_scale=ours.value)
    for step in range(4100):
        is_finite = step not in (0, 1, 5, 2500)
        parameter.grad = torch.full((1,), 1.0 if is_finite else float("inf"))
        theirs.scale(torch.ones(1))
        theirs.step(optimizer)
        theirs.update()
        assert ours.update(is_finite) is (not is_finite)
        assert ours.value == theirs.get_scale(), step


def test_a_scale_of_one_excuses_nothing_and_a_restored_one_goes_on():
    scale = LossScale(True)
    for _ in range(16):
        assert scale.update(False)
    assert scale.value == 1
    assert not scale.update(False)
    for _ in range(1999):
        scale.update(True)
    again = LossScale(True)
    again.restore(scale.state())
    again.update(True)
    assert again.value == 2
    with pytest.raises(ConfigError, match="not finite"):
        again.restore({"value": float("inf"), "good_steps": 0})


def test_other_formats_are_not_scaled():
    scale = LossScale(False)
    assert not scale.update(False)
    assert scale.value == 1
