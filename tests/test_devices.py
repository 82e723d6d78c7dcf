"""Devices and types of numbers by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medseg.config.networks import UNetConfig
from medseg.devices import choose_device, choose_layout, choose_precision
from medseg.errors import RunError
from medseg.models import build


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(RunError, match="no usable GPU") as caught:
        choose_device("cuda")
    assert caught.value.code == "RUN-DEVICE"


def test_precision_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert choose_precision("fp32", cpu) == torch.float32
    assert choose_precision("bf16", cpu) == torch.bfloat16
    for flag, wanted in ("avx512_bf16", torch.bfloat16), ("amx_bf16", torch.bfloat16), ("avx2", torch.float32):
        able = {flag: True}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able, raising=False)
        assert choose_precision("auto", cpu) == wanted  # a fact of the device: the same masks each time


@pytest.mark.parametrize("norm", ["none", "batch", "instance", "group"])
def test_instance_normalisation_on_a_processor_gets_planes(norm: Any) -> None:
    network = build(UNetConfig(widths=(4, 8), norm=norm), 3, 2)
    wanted = torch.contiguous_format if norm == "instance" else torch.channels_last
    assert choose_layout(network, torch.device("cpu")) == wanted
    assert choose_layout(network, torch.device("cuda")) == torch.channels_last
