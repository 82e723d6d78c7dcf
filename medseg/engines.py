"""Engines: what computes the logits of a network. torch is always there; OpenVINO and ONNX Runtime are extras for CPUs.

The measure is torch in float32. Another engine is taken only when its masks are the same: on real slices, for every
network and label, a Dice of at least 0.999 to the exact mask (`choose`). Its network is converted in memory from the
torch module; nothing is read from, or run from, a model folder.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from medseg.config.frozen import Settings
from medseg.config.settings import PredictConfig
from medseg.devices import choose_layout, choose_precision
from medseg.errors import RunError, first_line
from medseg.models import Network, SegNet

log = logging.getLogger(__name__)

Name = Literal["torch", "openvino", "onnx"]
Precision = Literal["fp32", "bf16", "int8"]

Ranges = Mapping[str, tuple[float, float]]
"""Of the input of each convolution of a network, in the order in which they are computed: what int8 needs."""

Compute = Callable[[Tensor], Tensor]
"""Images (b, c, h, w) float32 to logits (b, classes, h, w) float32, any h and w."""

PACKAGES: dict[Name, tuple[str, ...]] = {
    "torch": ("torch",),
    "openvino": ("openvino", "onnx"),
    "onnx": ("onnxruntime", "onnx"),
}
"""What each engine imports; the first one's version counts."""

FASTEST_FIRST: tuple[tuple[Name, Precision], ...] = (
    ("openvino", "int8"),
    ("openvino", "bf16"),
    ("torch", "bf16"),
    ("openvino", "fp32"),
    ("onnx", "fp32"),
    ("torch", "fp32"),
)
"""As measured by tests/benchmarks/engines.py. A fact of the code, never a timing: the same command, the same engine."""

EQUAL = 0.999
"""Dice between two engines' masks from which on they count as the same."""

ENOUGH = 0.99
"""The same where bf16 or int8 is asked for by name: bf16's rounding alone leaves 0.993 to 0.9995 (sarcoma), which moves
the Dice to references by 0.001 either way. Less would be an engine's fault, or too coarse for the network."""

LEAST_PIXELS = 1000
"""Of a label, for its Dice to be judged: below 500, one pixel alone decides about 0.999."""


class Engine(Settings):
    """A library and the type of numbers that it computes in."""

    name: Name = Field(description="the library")
    precision: Precision = Field(description="of its arithmetic; int8: of its convolutions")
    version: str = Field(description="of the library")

    def __str__(self) -> str:
        """Return one line, such as `openvino 2026.4.1 bf16`."""
        return f"{self.name} {self.version} {self.precision}"

    @property
    def exact(self) -> bool:
        """Whether it is the measure of the others."""
        return (self.name, self.precision) == ("torch", "fp32")


class Proof(Settings):
    """How an engine's masks compare with the exact ones."""

    engine: Engine = Field(description="what was tried")
    dice: tuple[float, ...] = Field((), description="by label, the lowest of all networks; empty when it did not run")

    def holds(self, wanted: float = EQUAL) -> bool:
        """Whether the masks agree so well."""
        return bool(self.dice) and min(self.dice) >= wanted


class Choice(Settings):
    """The engine of a model on a machine, and why it was chosen."""

    engine: Engine = Field(description="the chosen one")
    model: str = Field("", description="hash of the model")
    proofs: tuple[Proof, ...] = Field((), description="of every engine that was tried, in order")
    slices: int = Field(0, ge=0, description="how many slices the proofs rest on")


# ----------------------------------------------------------------------------------------------- what there is


def installed(name: Name) -> bool:
    """Tell whether an engine's packages are here."""
    return all(importlib.util.find_spec(package) is not None for package in PACKAGES[name])


def offered(config: PredictConfig, device: torch.device, network: Network) -> tuple[Engine, ...]:
    """Return the engines that the settings allow on this machine, the fastest first; the last needs no proof.

    Args:
        config: engine and precision; what is `auto` in it is left open.
        device: to compute on; all engines but torch are for CPUs.
        network: OpenVINO and ONNX Runtime have no fast unpooling, so that `auto` leaves a SegNet to torch.

    Raises:
        RunError: RUN-ENGINE when the engine asked for is not installed, or cannot do what is asked.
    """
    names: tuple[Name, ...] = ("torch",) if config.engine == "auto" else (config.engine,)
    if config.engine == "auto" and config.precision == "int8":
        names = ("torch", "openvino")
    elif config.engine == "auto" and device.type == "cpu" and not isinstance(network, SegNet):
        names = tuple(name for name in PACKAGES if installed(name))
    _check(names, config, device)
    precisions = _precisions(config, device)
    found = [pair for pair in FASTEST_FIRST if pair[0] in names and pair[1] in precisions]
    if config.precision == "auto" and "torch" not in names:
        found.append(("torch", "fp32"))
    return tuple(
        Engine(name=name, precision=precision, version=version(PACKAGES[name][0])) for name, precision in found
    )


def _precisions(config: PredictConfig, device: torch.device) -> tuple[Precision, ...]:
    """Return the types of numbers that the settings allow; where int8 fails its proof, the next best is taken."""
    bf16: tuple[Precision, ...] = ("bf16",) if choose_precision("auto", device) == torch.bfloat16 else ()
    match config.precision:
        case "auto":
            return (*bf16, "fp32")
        case "int8" if config.engine == "auto":
            return ("int8", *(bf16 or ("fp32",)))
        case asked:
            return (asked,)


def _check(names: Sequence[Name], config: PredictConfig, device: torch.device) -> None:
    for name in names:
        if not installed(name):
            asked, other = ("int8", "precision=auto") if config.precision == "int8" else (name, "engine=auto")
            problem = f"{asked} is asked for, and {name} not installed ({', '.join(PACKAGES[name])})"
            raise RunError("RUN-ENGINE", "engine", problem, f"pip install 'medseg[{name}]', or use {other}.")
        if name != "torch" and device.type != "cpu":
            problem = f"{name} computes on the processor, and {device.type} is asked for"
            raise RunError("RUN-ENGINE", "engine", problem, "Use device=cpu or engine=torch.")
    if config.engine == "onnx" and config.precision in ("bf16", "int8"):
        raise RunError("RUN-ENGINE", "engine", "onnx computes in fp32 only", "Use precision=fp32 or auto.")
    if config.engine == "torch" and config.precision == "int8":
        raise RunError("RUN-ENGINE", "engine", "torch does not compute in int8", "Use engine=auto or precision=bf16.")


# ------------------------------------------------------------------------------------------------- the choice


def choose(
    engines: Sequence[Engine],
    networks: Sequence[Network],
    images: Tensor,
    device: torch.device,
    wanted: float = EQUAL,
    ranges: Sequence[Ranges] = (),
) -> Choice:
    """Take the first engine whose masks are proved equal to the exact ones; the last one is taken whatever they are.

    Args:
        engines: as `offered` gives them.
        networks: of a model; every one must pass.
        images: `(n, c, h, w)` float32: real slices, prepared, from all over a scan.
        device: to compute on.
        wanted: Dice to the exact masks; `EQUAL`, or `ENOUGH` where a precision is asked for.
        ranges: of each network, for int8.
    """
    exact: list[Tensor] = []
    proofs: list[Proof] = []
    for engine in engines:
        if engine.exact:
            break
        exact = exact or [_logits(_torch(network, device, "fp32"), images) for network in networks]
        last = engine is engines[-1]
        try:
            dice = [
                mask_dice(logits, _logits(start(engine, network, device, own), images))
                for logits, network, own in zip(exact, networks, ranges or [{}] * len(networks), strict=True)
            ]
        except Exception as error:
            if last:
                raise
            log.warning("%s cannot be used: %s", engine, first_line(error))
            log.debug("because of", exc_info=True)
            proofs.append(Proof(engine=engine))
            continue
        proof = Proof(engine=engine, dice=tuple(round(min(column), 6) for column in zip(*dice, strict=True)))
        proofs.append(proof)
        told = f"{engine}: Dice {min(proof.dice):.4f} to exact masks on {len(images)} slices"
        taken = last or proof.holds(wanted)
        if not proof.holds():  # a warning only where masks are concerned: what is not used costs time alone
            level, then = (logging.WARNING, "used because it is asked for") if taken else (logging.INFO, "not used")
            log.log(level, "%s, wanted %g: %s", told, EQUAL, then)
        if taken:
            log.info("%s", told)
            return Choice(engine=engine, proofs=tuple(proofs), slices=len(images))
    return Choice(engine=engines[-1], proofs=tuple(proofs), slices=len(images) if proofs else 0)


def _logits(compute: Compute, images: Tensor) -> Tensor:
    """Compute slice by slice: a proof must not run out of memory where a single slice would fit."""
    return torch.cat([compute(image).cpu() for image in images.split(1)])


def mask_dice(exact: Tensor, other: Tensor) -> list[float]:
    """Return the Dice of each label between the masks of two engines' logits of the same slices.

    A label with few pixels (`LEAST_PIXELS`) is judged at the level that gives it so many instead of where it wins: a
    scan without tumour shows too whether two engines draw the same outlines.

    Args:
        exact: `(n, classes, h, w)`; one class is a sigmoid's.
        other: as `exact`.

    Returns:
        From 0 to 1, in the order of the label numbers.
    """
    dice = []
    for one, two in zip(_margins(exact), _margins(other), strict=True):
        level = 0.0
        if int((one > 0).sum()) < LEAST_PIXELS:
            level = float(one.topk(min(LEAST_PIXELS, one.numel() - 1) + 1).values[-1])
        a, b = one > level, two > level
        both = int(a.sum() + b.sum())
        dice.append(2 * int((a & b).sum()) / both if both else 1.0)
    return dice


def _margins(logits: Tensor) -> Iterator[Tensor]:
    """Yield for each label by how much its logit is above all others', flat: positive where the label wins."""
    classes = logits.shape[1]
    if classes == 1:
        yield logits.flatten()
    for label in range(1, classes):
        others = [number for number in range(classes) if number != label]
        yield (logits[:, label] - logits[:, others].amax(1)).flatten()


# ------------------------------------------------------------------------------------------------ the engines


def start(engine: Engine, network: Network, device: torch.device, ranges: Ranges | None = None) -> Compute:
    """Return what computes a network; equal images give equal logits from run to run.

    Args:
        engine: to compute by.
        network: to compute.
        device: to compute on.
        ranges: of the network, for int8.
    """
    match engine.name:
        case "torch":
            return _torch(network, device, engine.precision)
        case "openvino":
            return _openvino(network, engine.precision, ranges or {})
        case "onnx":
            return _onnxruntime(network)


def _torch(network: Network, device: torch.device, precision: Precision) -> Compute:
    layout = choose_layout(network, device)
    network = network.to(device).to(memory_format=layout)  # type: ignore[call-overload]  # not in the stub

    @torch.inference_mode()
    def compute(images: Tensor) -> Tensor:
        x = images.to(device, memory_format=layout)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits: Tensor = network(x)
        return logits.float()

    return compute


def _openvino(network: Network, precision: Precision, ranges: Ranges) -> Compute:
    core = _quiet_openvino().Core()
    model = to_onnx(network)
    if precision == "int8":
        from medseg.quantise import quantised  # needs onnx, which only the extras bring

        model = quantised(model, list(ranges.values()))
    able = choose_precision("auto", torch.device("cpu")) == torch.bfloat16  # for what int8 leaves in floating point
    hints = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" or (precision == "int8" and able) else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",  # all threads work on one batch
    }
    compiled = core.compile_model(core.read_model(model), "CPU", hints)

    def layers(x: Tensor) -> Tensor:
        return torch.from_numpy(compiled([x.contiguous().numpy()], share_inputs=True)[0])

    return lambda images: network.with_layers(layers, images)


def _onnxruntime(network: Network) -> Compute:
    onnxruntime = importlib.import_module("onnxruntime")
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.use_deterministic_compute = True
    options.enable_mem_pattern = False  # a plan of memory for each size of slices
    options.log_severity_level = 4  # what fails is raised, too
    session = onnxruntime.InferenceSession(to_onnx(network), options, providers=["CPUExecutionProvider"])

    def layers(x: Tensor) -> Tensor:
        try:
            return torch.from_numpy(session.run(None, {"images": x.contiguous().numpy()})[0])
        except Exception as error:
            if "Failed to allocate memory" in str(error):  # it has no error of its own for that
                raise MemoryError(first_line(error)) from error
            raise

    return lambda images: network.with_layers(layers, images)


def _quiet_openvino() -> Any:  # noqa: ANN401  a module without types
    """Import OpenVINO without its telemetry, which reports every import over the network: not from a hospital."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # its import fails; OpenVINO copes
    return importlib.import_module("openvino")


class _Layers(nn.Module):
    """The layers of a network as a module of their own: on an input that fits, neither padded nor cropped."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.layers(images)


def to_onnx(network: Network) -> bytes:
    """Return a network's layers (`Network.layers`) as an ONNX model, for any number and size of slices that fit."""
    layers = _Layers(copy.deepcopy(network).cpu().float())  # a copy: the exporter folds normalisation into weights
    images = torch.zeros(2, network.in_channels, network.smallest, 2 * network.smallest)
    axes = {0: "slices", 2: "rows", 3: "columns"}
    names = {"input_names": ["images"], "output_names": ["logits"], "dynamic_axes": {"images": axes, "logits": axes}}
    file = io.BytesIO()
    with _quiet_export():
        # The tracing exporter: 0.3 s, where the one by torch.export takes 3 to 11 s and another package.
        torch.onnx.export(layers.eval(), (images,), file, dynamo=False, **names)  # type: ignore[arg-type]
    return file.getvalue()


@contextmanager
def _quiet_export() -> Iterator[None]:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # that the exporter is the older one; that instance norm has no running mean
        yield
