"""`medseg predict`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from medseg.cli.terminal import SOME_REJECTED, Output, Positive, close_batch, err, given, plain, screen
from medseg.errors import UsageError

if TYPE_CHECKING:
    from medseg.config.settings import BatchConfig, CleanConfig, PredictConfig
    from medseg.models.model_folder import ModelDescription

Format = Literal["nifti", "dicom-seg", "rtstruct"]
Formats = Annotated[tuple[Format, ...], Parameter(consume_multiple=True, show_default=False)]


def predict(
    *paths: Path,
    model: Path,
    output: Output,
    format: Formats = ("nifti",),
    batch_size: Positive | None = None,
    device: Literal["auto", "cpu", "cuda"] | None = None,
    engine: Literal["auto", "torch", "openvino", "onnx"] | None = None,
    precision: Literal["auto", "fp32", "bf16", "int8"] | None = None,
    mirror: Annotated[bool | None, Parameter(negative="--no-mirror")] = None,
    clean: str | None = None,
    workers: Annotated[int | None, Parameter(validator=Number(gte=0, lte=64))] = None,
    timeout: Annotated[float | None, Parameter(validator=Number(gt=0, lte=1e6))] = None,
    retry_failed: bool = False,
    shard: str | None = None,
    cluster: str | None = None,
) -> int:
    """Segment every scan below the paths; masks lie on each scan's own grid.

    Args:
        paths: folders or files.
        model: model or run folder.
        output: folder for masks and the ledger cases.csv.
        format: NIfTI is always written; the DICOM forms too, for scans that were DICOM.
        batch_size: slices in a forward pass.
        device: where to compute.
        engine: what computes the network.
        precision: arithmetic of the network.
        mirror: average with the left-right mirror image: twice the work.
        clean: cleaning of the masks, as predict.clean in a configuration: "{tumour: {smallest_ml: 0.1}}".
        workers: processes that read and write; by default one for each core, four at most.
        timeout: seconds that a case may take; 3600 by default.
        retry_failed: try cases again that failed in an earlier run.
        shard: i/n, such as 1/8: the i-th of n shares of the cases; the others run elsewhere, into the same folder.
        cluster: address of a Dask scheduler, tcp://host:8786; its workers see the same folders (extra: dask).
    """
    scans = given(paths)
    wishes: dict[str, object] = {"workers": workers, "timeout_s": timeout, "retry_failed": retry_failed, "shard": shard}
    wishes |= {"cluster": cluster}
    batch = batch_settings({key: value for key, value in wishes.items() if value is not None})
    from medseg.batch import predict_folder
    from medseg.models.model_folder import load_model

    loaded = load_model(model)
    asked: dict[str, object] = {"batch_size": batch_size, "device": device, "engine": engine}
    asked |= {"precision": precision, "mirror": mirror}
    settings = prediction_settings(loaded.description, asked, clean)
    ledger = predict_folder(scans, loaded, output, config=settings, formats=format, batch=batch, watch=screen)
    return close_batch(ledger, output)


def prediction_settings(description: ModelDescription, asked: Mapping[str, object], clean: str | None) -> PredictConfig:
    """Return the model's own settings of prediction, changed by the options that were given."""
    changes = {key: value for key, value in asked.items() if value is not None}
    if clean is not None:
        changes["clean"] = cleaning(clean, description.labels)
    return type(description.predict).model_validate(description.predict.model_dump() | changes)


def batch_settings(wishes: dict[str, object]) -> BatchConfig:
    """Check the options of a batch.

    Raises:
        UsageError: USAGE-OPTION.
    """
    from pydantic import ValidationError

    from medseg.config.settings import BatchConfig
    from medseg.shards import Shard

    try:
        batch = BatchConfig.model_validate(wishes)
        Shard.parse(batch.shard)
        return batch
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        option = f"--{str(fault['loc'][0]).replace('_', '-')}"
        wanted = "wanted i/n, such as 1/8" if option == "--shard" else fault["msg"]
        problem = f"{fault['input']!r}: {wanted}"
        raise UsageError("USAGE-OPTION", option, problem, "See medseg predict --help.") from error


def merge(output: Path) -> int:
    """Join the records of shards in an output folder; the last shard to end does so by itself.

    Args:
        output: folder that the shards wrote to.
    """
    from medseg.shards import join

    ledger, unfinished = join(output)
    code = close_batch(ledger, output)
    for shard in unfinished:
        err.print(plain(f"shard {shard.number}/{shard.count} has not come to its end"))
    return code if code or not unfinished else SOME_REJECTED


def cleaning(text: str, labels: dict[int, str]) -> dict[str, CleanConfig]:
    """Read `--clean`, with the checks and the messages of a configuration for these labels."""
    from medseg.config import parse

    known = json.dumps({"labels": {name: number for number, name in labels.items()}})
    return parse(known, "--clean", [f"predict.clean={text}"]).predict.clean
