"""The model folder: there and back, and everything damaged or hostile refused with a reason, nothing run."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save

from medseg.config.networks import BiSeNetConfig, DeepLabConfig, ModelConfig, SegNetConfig, UNetConfig
from medseg.errors import MedsegError, ModelError, RunError, UsageError
from medseg.models import build
from medseg.models.model_folder import ModelDescription, join_models, load_model, save_model
from medseg.prediction import predict
from tests.studies import GRID, preparation, random_volume, threshold_model

NETWORKS: list[ModelConfig] = [
    UNetConfig(widths=(4, 8), norm="batch"),
    SegNetConfig(widths=(4, 8), convs_per_stage=(1, 1)),
    DeepLabConfig(encoder="resnet18", width=8, low_level_width=4),
    BiSeNetConfig(detail_widths=(4, 4, 8), semantic_widths=(4, 4, 8, 8), expansion=1, head_width=8, booster_width=4),
]


class Payload:
    """A pickle that leaves a file behind when it is run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def described(network: ModelConfig, **changes: Any) -> ModelDescription:
    values: dict[str, Any] = {
        "network": network,
        "in_channels": 3,
        "out_channels": 2,
        "labels": {1: "tumour"},
        "preparation": preparation().to_dict(),
        "patch": (16, 16),
        **changes,
    }
    return ModelDescription(**values)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = build(NETWORKS[0], 3, 2)
    save_model(tmp_path / "run" / "model", described(NETWORKS[0]), network.state_dict())
    return tmp_path / "run" / "model"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "weights.safetensors")


def put_weights(folder: Path, content: bytes) -> None:
    """Replace the weights, and the hash that should have told."""
    (folder / "weights.safetensors").write_bytes(content)
    edit(folder, weights={"weights.safetensors": hashlib.sha256(content).hexdigest()})


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "model.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump({**content, **changes}), encoding="utf-8")


def refused(folder: Path, code: str) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    assert caught.value.code == code
    return str(caught.value)


@pytest.mark.parametrize("config", NETWORKS, ids=lambda config: config.name)
def test_there_and_back_gives_equal_outputs(tmp_path: Path, config: ModelConfig) -> None:
    torch.manual_seed(1)
    network = build(config, 3, 2)
    network.train()
    network(torch.randn(2, 3, 32, 32))  # batch normalisation has seen something
    network.eval()
    save_model(tmp_path / "model", described(config), network.state_dict())
    model = load_model(tmp_path / "model")
    image = torch.randn(2, 3, 37, 29)
    with torch.inference_mode():
        assert torch.equal(model.networks[0](image), network(image))
    assert not model.networks[0].training
    assert model.preparation == preparation()
    assert dict(model.labels) == {1: "tumour"}
    assert {value.device.type for value in model.networks[0].state_dict().values()} == {"cpu"}


def test_a_run_folder_stands_for_its_model(folder: Path) -> None:
    assert load_model(folder.parent).hash == load_model(folder).hash


def test_a_loaded_model_can_be_trained_on_and_moved(folder: Path) -> None:
    network = load_model(folder).networks[0]
    assert all(parameter.requires_grad for parameter in network.parameters())
    network.train()
    network.to(torch.float64)(torch.randn(1, 3, 16, 16, dtype=torch.float64)).sum().backward()
    torch.optim.SGD(network.parameters(), lr=0.1).step()  # the tensors may be written to


def test_the_folder_holds_three_files_and_no_code(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "model.yaml", "weights.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert "python" in yaml.safe_load((folder / "model.yaml").read_text())["versions"]
    assert "!!" not in (folder / "model.yaml").read_text()


def test_a_model_of_a_newer_version_says_so(folder: Path) -> None:
    path = folder / "model.yaml"
    content = yaml.safe_load(path.read_text())
    content |= {"learned_tomorrow": 1, "versions": content["versions"] | {"medseg": "9.1"}}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ModelError, match="learned_tomorrow") as caught:
        load_model(folder)
    assert caught.value.advice.startswith("medseg 9.1 wrote it, this is ")


def test_a_new_model_replaces_the_old_one(folder: Path) -> None:
    before = load_model(folder)
    torch.manual_seed(5)
    save_model(folder, described(NETWORKS[0]), build(NETWORKS[0], 3, 2).state_dict())
    assert load_model(folder).hash != before.hash
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_the_hash_tells_models_apart(folder: Path) -> None:
    before = load_model(folder).hash
    assert load_model(folder).hash == before
    edit(folder, labels={1: "lesion"})
    assert load_model(folder).hash != before


def test_weights_of_bfloat16_or_a_gpu_are_saved_as_plain_arrays(folder: Path) -> None:
    assert {value.dtype for value in weights(folder).values()} <= {torch.float32, torch.int64}


def test_a_folder_of_the_older_form_loads(folder: Path) -> None:
    content = yaml.safe_load((folder / "model.yaml").read_text(encoding="utf-8"))
    content["weights_sha256"] = content.pop("weights")["weights.safetensors"]
    hashed = load_model(folder).hash
    (folder / "model.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    model = load_model(folder)
    assert len(model.networks) == 1
    assert model.hash == hashed
    state = weights(folder)
    state["final.bias"][1] += 1
    (folder / "weights.safetensors").write_bytes(save(state))
    refused(folder, "MODEL-HASH")


RANGES: tuple[dict[str, tuple[float, float]], ...] = ({"enc1.0": (-1.5, 2.0), "final": (0.0, 3.25)},)


def test_ranges_are_kept_in_their_order(tmp_path: Path) -> None:
    save_model(tmp_path, described(NETWORKS[0], ranges=RANGES), build(NETWORKS[0], 3, 2).state_dict())
    kept = load_model(tmp_path).description.ranges
    assert kept == RANGES
    assert list(kept[0]) == ["enc1.0", "final"]


def test_ranges_belong_to_the_networks_and_are_numbers(folder: Path) -> None:
    for wrong in ([{}, {}], [{"enc1.0": [0]}], [{"enc1.0": [0, float("nan")]}], [{"enc1.0": ["x", 1]}]):
        edit(folder, ranges=wrong)
        refused(folder, "MODEL-FORMAT")


# ----------------------------------------------------------------------------------------------------------- ensembles


@pytest.fixture
def members(tmp_path: Path) -> list[Path]:
    """Three models that differ in their weights only."""
    for number in range(3):
        torch.manual_seed(number)
        told = described(NETWORKS[0], trained_on={"cases": number}, scores={"dice": 0.5}, dice_offsets={"tumour": 1})
        save_model(tmp_path / f"m{number}", told, build(NETWORKS[0], 3, 2).state_dict())
    return [tmp_path / f"m{number}" for number in range(3)]


@pytest.fixture
def ensemble(members: list[Path], tmp_path: Path) -> Path:
    join_models([load_model(member) for member in members], tmp_path / "ensemble")
    return tmp_path / "ensemble"


def test_an_ensemble_holds_its_members(ensemble: Path, members: list[Path]) -> None:
    names = ["README.md", "model.yaml", *(f"weights-{number}.safetensors" for number in (1, 2, 3))]
    assert sorted(path.name for path in ensemble.iterdir()) == names
    model = load_model(ensemble)
    for network, member in zip(model.networks, members, strict=True):
        alone = load_model(member).networks[0].state_dict()
        assert all(torch.equal(alone[name], value) for name, value in network.state_dict().items())
        assert not network.training
    assert model.description.trained_on == {"members": [{"cases": number} for number in range(3)]}
    assert (model.description.scores, model.description.dice_offsets) == ({}, {})
    assert model.hash not in {load_model(member).hash for member in members}


def test_an_ensemble_has_the_ranges_of_all_or_none(members: list[Path], tmp_path: Path) -> None:
    spans = [({"enc1.0": (-1.0, float(number))},) for number in range(2)]
    for number, own in enumerate(spans):
        told = load_model(members[number]).description.model_copy(update={"ranges": own})
        save_model(members[number], told, load_model(members[number]).networks[0].state_dict())
    join_models([load_model(member) for member in members[:2]], tmp_path / "two")
    assert load_model(tmp_path / "two").description.ranges == spans[0] + spans[1]
    join_models([load_model(member) for member in members], tmp_path / "three")
    assert load_model(tmp_path / "three").description.ranges == ()


def test_ensembles_can_be_joined_too(ensemble: Path, members: list[Path], tmp_path: Path) -> None:
    join_models([load_model(ensemble), load_model(members[0])], tmp_path / "more", scores={"dice": 0.9})
    assert len(load_model(tmp_path / "more").networks) == 4
    assert load_model(tmp_path / "more").description.scores == {"dice": 0.9}


@pytest.mark.parametrize(
    "change",
    [
        {"network": UNetConfig(widths=(4, 8), norm="instance")},
        {"out_channels": 3, "labels": {1: "tumour", 2: "edema"}},
        {"labels": {1: "lesion"}},
        {"patch": (32, 32)},
        {"preparation": preparation(spacing_mm=(1.0, 2.0)).to_dict()},
    ],
    ids=lambda change: next(iter(change)),
)
def test_models_of_another_kind_are_not_joined(members: list[Path], tmp_path: Path, change: dict[str, Any]) -> None:
    told = described(**{"network": NETWORKS[0], **change})
    save_model(tmp_path / "other", told, build(told.network, told.in_channels, told.out_channels).state_dict())
    with pytest.raises(ModelError) as caught:
        join_models([load_model(members[0]), load_model(tmp_path / "other")], tmp_path / "joined")
    assert caught.value.code == "MODEL-DIFFERS"
    assert f"model 2 differs from the first: {next(iter(change))}" in str(caught.value)
    assert not (tmp_path / "joined").exists()


@pytest.mark.parametrize("number", [1, 3])
def test_every_member_is_checked(ensemble: Path, number: int) -> None:
    path = ensemble / f"weights-{number}.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    assert path.name in refused(ensemble, "MODEL-HASH")
    path.unlink()
    assert path.name in refused(ensemble, "MODEL-FORMAT")
    for change, code in ((_more_channels, "MODEL-SHAPE"), (_missing, "MODEL-SHAPE"), (_not_a_number, "MODEL-VALUES")):
        path.write_bytes(whole)
        state = load_file(path)
        change(state)
        path.write_bytes(save(state))
        hashes = yaml.safe_load((ensemble / "model.yaml").read_text(encoding="utf-8"))["weights"]
        edit(ensemble, weights={**hashes, path.name: hashlib.sha256(path.read_bytes()).hexdigest()})
        assert path.name in refused(ensemble, code)


def _not_a_number(state: dict[str, torch.Tensor]) -> None:
    state["final.bias"][0] = float("nan")


@pytest.mark.parametrize(
    "name", ["../weights.safetensors", "/etc/passwd", "weights-0.safetensors", "other.safetensors"]
)
def test_weights_lie_in_the_folder_under_their_own_names(folder: Path, name: str) -> None:
    edit(folder, weights={name: "0" * 64})
    refused(folder, "MODEL-FORMAT")
    edit(folder, weights={})
    assert "names no weights" in refused(folder, "MODEL-FORMAT")


def test_an_ensemble_and_a_single_model_replace_each_other(ensemble: Path, members: list[Path]) -> None:
    single = load_model(members[0])
    save_model(ensemble, single.description, single.networks[0].state_dict())
    assert sorted(path.name for path in ensemble.iterdir()) == ["README.md", "model.yaml", "weights.safetensors"]
    assert load_model(ensemble).hash == single.hash
    join_models([load_model(member) for member in members], ensemble)
    assert len(load_model(ensemble).networks) == 3
    assert len(list(ensemble.iterdir())) == 5  # three weights, model.yaml and the card


# -------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 0.999])
def test_cut_weights(folder: Path, share: float) -> None:
    content = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(content[: int(share * len(content))])
    assert "bytes with hash" in refused(folder, "MODEL-HASH")
    put_weights(folder, content[: int(share * len(content))])
    refused(folder, "MODEL-FORMAT")


def test_one_flipped_bit(folder: Path) -> None:
    content = bytearray((folder / "weights.safetensors").read_bytes())
    content[-5] ^= 1
    (folder / "weights.safetensors").write_bytes(content)
    refused(folder, "MODEL-HASH")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_no_numbers(folder: Path, value: float) -> None:
    state = weights(folder)
    state["final.bias"][1] = value
    put_weights(folder, save(state))
    assert "final.bias" in refused(folder, "MODEL-VALUES")


def _more_channels(state: dict[str, torch.Tensor]) -> None:
    state["enc1.0.weight"] = torch.zeros(4, 4, 3, 3)


def _missing(state: dict[str, torch.Tensor]) -> None:
    del state["final.bias"]


def _unexpected(state: dict[str, torch.Tensor]) -> None:
    state["foo"] = torch.zeros(1)


def _other_type(state: dict[str, torch.Tensor]) -> None:
    state["final.bias"] = state["final.bias"].to(torch.int32)


def _float8(state: dict[str, torch.Tensor]) -> None:
    state["final.bias"] = state["final.bias"].to(torch.float8_e4m3fn)


def _complex(state: dict[str, torch.Tensor]) -> None:
    state["final.bias"] = state["final.bias"].to(torch.complex64)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_more_channels, "enc1.0.weight has shape (4, 4, 3, 3), the architecture wants (4, 3, 3, 3)"),
        (_missing, "final.bias"),
        (_unexpected, "foo"),
        (_other_type, "final.bias"),
        (_float8, "final.bias"),
        (_complex, "final.bias"),
    ],
)
def test_weights_of_another_architecture(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], None], named: str
) -> None:
    state = weights(folder)
    change(state)
    put_weights(folder, save(state))
    assert named in refused(folder, "MODEL-SHAPE")


def test_an_architecture_of_another_size_takes_no_memory(folder: Path) -> None:
    # 9 stages of 4096 channels: 13 GB of weights, were they made before the arrays are compared.
    edit(folder, network={"name": "unet", "widths": [4096] * 9, "norm": "batch"})
    refused(folder, "MODEL-SHAPE")


def _hostile(kind: str, mark: Path, path: Path) -> bytes:
    if kind == "pickle":
        return pickle.dumps(Payload(mark))
    torch.save({"conv.weight": Payload(mark)}, path, _use_new_zipfile_serialization=kind == "archive")
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["pickle", "archive", "legacy"])
def test_pickles_in_disguise_are_not_run(folder: Path, tmp_path: Path, kind: str) -> None:
    mark = tmp_path / "mark"
    content = _hostile(kind, mark, tmp_path / "made.pt")
    (folder / "weights.safetensors").write_bytes(content)
    refused(folder, "MODEL-HASH")
    put_weights(folder, content)
    refused(folder, "MODEL-FORMAT")
    (folder / "model.yaml").write_bytes(content)
    refused(folder, "MODEL-FORMAT")
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"# README\n\nThe weights are elsewhere.\n",
        bytes(64),
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 8) + b'{"a": 1}',
        b"\x89HDF\r\n\x1a\n" + bytes(100),
    ],
)
def test_other_files_named_weights(folder: Path, content: bytes) -> None:
    put_weights(folder, content)
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    assert caught.value.code in ("MODEL-FORMAT", "MODEL-SHAPE")


def test_any_damage_with_the_right_hash_is_refused_or_harmless(folder: Path) -> None:
    whole = (folder / "weights.safetensors").read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    chance = random.Random(0)
    for place in [chance.randrange(header) for _ in range(150)]:
        content = bytearray(whole)
        content[place] = chance.randrange(256)
        put_weights(folder, bytes(content))
        try:
            load_model(folder)
        except MedsegError as error:
            assert error.code.startswith("MODEL-")  # noqa: PT017  most are refused, not all need be


def test_a_header_that_claims_more_than_the_file_holds(folder: Path) -> None:
    header = b'{"final.bias":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4000000000]}}'
    put_weights(folder, struct.pack("<Q", len(header)) + header + bytes(72))
    refused(folder, "MODEL-FORMAT")


@pytest.mark.parametrize("name", ["weights.safetensors", "model.yaml"])
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert name in refused(folder, "MODEL-FORMAT")


def test_paths_that_are_no_model(folder: Path, tmp_path: Path) -> None:
    refused(folder / "model.yaml", "MODEL-FORMAT")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "MODEL-FORMAT")
    with pytest.raises(UsageError) as caught:
        load_model(tmp_path / "nowhere")
    assert caught.value.code == "USAGE-PATH"


BOMB = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n" for n in range(24)
)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch MARK']",
        "format: !!python/object/apply:os.system ['touch MARK']",
        "format: !!python/name:os.system",
        BOMB,
        "[" * 5000,
        "",
        "- a\n- list",
        "just text",
        "format: 1\n\tnetwork: x",
        "format: 2001-99-99",
        "format: " + "9" * 5000,
        "? [a, b]\n: c",
        "format: 2",
    ],
    ids=range(13),
)
def test_descriptions_that_are_none(folder: Path, tmp_path: Path, text: str) -> None:
    mark = tmp_path / "mark"
    (folder / "model.yaml").write_text(text.replace("MARK", str(mark)), encoding="utf-8")
    refused(folder, "MODEL-FORMAT")
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"name: caf\xe9", b"format: 1\0", b"#" * 5_000_000])
def test_descriptions_that_are_no_text(folder: Path, content: bytes) -> None:
    (folder / "model.yaml").write_bytes(content)
    refused(folder, "MODEL-FORMAT")


@pytest.mark.parametrize(
    "change",
    [
        {"network": {"name": "os.system"}},
        {"network": {"name": "unet", "widths": [4]}},
        {"network": {"name": "unet", "_target_": "os.system"}},
        {"out_channels": 0},
        {"out_channels": 10**9},
        {"in_channels": 5},
        {"labels": {}},
        {"labels": {1: "a", 2: "a"}},
        {"labels": {1: "a", 2: "b"}},
        {"labels": {5: "tumour"}},
        {"preparation": {}},
        {"preparation": {**preparation().to_dict(), "plane": "diagonal"}},
        {"preparation": {**preparation().to_dict(), "spacing_mm": [0, 1]}},
        {"preparation": {**preparation().to_dict(), "extra": 1}},
        {"preparation": {**preparation().to_dict(), "context": 0}},
        {"patch": "large"},
        {"unknown": 1},
    ],
    ids=str,
)
def test_descriptions_that_contradict_themselves(folder: Path, change: dict[str, Any]) -> None:
    edit(folder, **change)
    refused(folder, "MODEL-FORMAT")


def test_a_model_of_one_channel_has_one_label(tmp_path: Path) -> None:
    model = threshold_model(0, binary=True)
    save_model(tmp_path / "model", model.description, model.networks[0].state_dict())
    volume = random_volume(GRID)
    wanted = (volume.voxels[0] > 0).astype(np.uint8)
    assert np.array_equal(predict(load_model(tmp_path / "model"), volume).labels, wanted)


# ------------------------------------------------------------------------------------------------------------- writing


def test_a_kill_between_the_two_files_is_noticed(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(9)
    save_model(tmp_path / "new", described(NETWORKS[0]), build(NETWORKS[0], 3, 2).state_dict())
    shutil.copy(tmp_path / "new" / "weights.safetensors", folder)
    refused(folder, "MODEL-HASH")


def test_a_full_disk_leaves_the_old_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_model(folder).hash

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left") as caught:
        save_model(folder, described(NETWORKS[0]), build(NETWORKS[0], 3, 2).state_dict())
    assert caught.value.code == "RUN-WRITE"
    assert load_model(folder).hash == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("place", ["file/model", "model"])
def test_a_place_that_cannot_be_a_folder(tmp_path: Path, place: str) -> None:
    (tmp_path / place.split("/")[0]).write_text("a file")
    with pytest.raises(RunError) as caught:
        save_model(tmp_path / place, described(NETWORKS[0]), build(NETWORKS[0], 3, 2).state_dict())
    assert caught.value.code == "RUN-WRITE"
