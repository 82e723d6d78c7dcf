"""`medseg watch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from medseg.cli.prediction import Formats, batch_settings, prediction_settings
from medseg.cli.terminal import DONE, Output, Positive, close_batch, out, screen


def watch(
    folder: Path,
    *,
    model: Path,
    output: Output,
    interval: Annotated[float, Parameter(validator=Number(gt=0, lte=1e6))] = 30,
    quiet: Annotated[float, Parameter(validator=Number(gte=0, lte=1e6))] = 60,
    once: bool = False,
    format: Formats = ("nifti",),
    batch_size: Positive | None = None,
    device: Literal["auto", "cpu", "cuda"] | None = None,
    engine: Literal["auto", "torch", "openvino", "onnx"] | None = None,
    precision: Literal["auto", "fp32", "bf16", "int8"] | None = None,
    mirror: Annotated[bool | None, Parameter(negative="--no-mirror")] = None,
    clean: str | None = None,
    workers: Annotated[int | None, Parameter(validator=Number(gte=0, lte=64))] = None,
    timeout: Annotated[float | None, Parameter(validator=Number(gt=0, lte=1e6))] = None,
) -> int:
    """Segment what is in a folder and what arrives there, until it is stopped (Ctrl-C).

    Args:
        folder: watched to any depth, such as an archive's export.
        model: model or run folder.
        output: folder for masks and the ledger cases.csv; may lie in the watched folder.
        interval: seconds between two looks at the folder.
        quiet: seconds for which the files of a study must not have changed: then it is complete.
        once: predict what is complete now, and end; waits as long as `quiet` to see what still changes.
        format: NIfTI is always written; the DICOM forms too, for scans that were DICOM.
        batch_size: slices in a forward pass.
        device: where to compute.
        engine: what computes the network.
        precision: arithmetic of the network.
        mirror: average with the left-right mirror image: twice the work.
        clean: cleaning of the masks, as predict.clean in a configuration: "{tumour: {smallest_ml: 0.1}}".
        workers: processes that read and write; by default one for each core, four at most.
        timeout: seconds that a case may take; 3600 by default.
    """
    from medseg.arrivals import Rhythm, predict_arrivals
    from medseg.models.model_folder import load_model
    from medseg.prediction import Predictor

    loaded = load_model(model)
    asked = {"batch_size": batch_size, "device": device, "engine": engine, "precision": precision, "mirror": mirror}
    settings = prediction_settings(loaded.description, asked, clean)
    wishes = {"workers": workers, "timeout_s": timeout}
    ledger = predict_arrivals(
        folder,
        Predictor(loaded, settings),
        output,
        formats=format,
        batch=batch_settings({key: value for key, value in wishes.items() if value is not None}),
        rhythm=Rhythm(interval, quiet),
        once=once,
        watch=screen,
    )
    if ledger is None:
        out.print("nothing new that is complete")
        return DONE
    return close_batch(ledger, output)
