"""Where to compute, in which numbers and order of them, and how to tell that memory ran out."""

from __future__ import annotations

import os

import torch
from torch import nn

from medseg.errors import RunError


def choose_device(name: str) -> torch.device:
    """Return the device a setting asks for: `auto` is a GPU when there is one.

    Raises:
        RunError: RUN-DEVICE when a GPU is asked for and absent.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise RunError(
            "RUN-DEVICE", "device", "cuda is asked for, and there is no usable GPU", "Use device=auto or cpu."
        )
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    # Else products of matrices may differ from run to run, and torch warns of it; read when the GPU is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return torch.device("cuda")


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the type of the network's arithmetic: `auto` is bf16 where the device computes in it.

    A fact of the device, not a timing: the same command gives the same masks. Where a processor has the instructions, a
    step took half the time in bf16; without them it is emulated and slower.

    Args:
        name: `auto`, `fp32` or `bf16`.
        device: to compute on.
    """
    if name != "auto":
        return torch.bfloat16 if name == "bf16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    able: dict[str, object] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # an older torch does not tell: float32 then
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32


def choose_layout(network: nn.Module, device: torch.device) -> torch.memory_format:
    """Return the order in memory in which a network is fastest: channels last, unless a CPU normalises by instance.

    Torch's instance normalisation works on planes and copies whatever comes otherwise: a third of a training step went
    into such copies, and without them a step of the default network takes 0.78 of the time (docs/benchmarks.md).

    Args:
        network: to run.
        device: to run it on.
    """
    planes = device.type == "cpu" and any(isinstance(module, nn.InstanceNorm2d) for module in network.modules())
    return torch.contiguous_format if planes else torch.channels_last


def is_out_of_memory(error: BaseException | None) -> bool:
    """Tell whether memory ran out; on a CPU torch says so by a plain RuntimeError of its allocator."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
