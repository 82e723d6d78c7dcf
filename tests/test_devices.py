"""Devices and types of numbers by name."""

from __future__ import annotations

import pytest
import torch

from medseg.devices import choose_device, choose_precision
from medseg.errors import RunError


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
