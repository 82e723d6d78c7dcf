"""Where to compute, in which type of numbers, and how to tell that memory ran out."""

from __future__ import annotations

import torch

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
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


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


def is_out_of_memory(error: BaseException | None) -> bool:
    """Tell whether memory ran out; on a CPU torch says so by a plain RuntimeError of its allocator."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
