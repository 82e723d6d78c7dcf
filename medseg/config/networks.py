"""The settings of the four networks, torch-free; `medseg.models.build` turns them into networks.

Names follow the papers that the networks' docstrings cite.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medseg.config.frozen import Settings

Width = Annotated[int, Field(ge=1, le=4096)]
Widths = Annotated[tuple[Width, ...], Field(min_length=2, max_length=9)]
"""Channels of each stage. Nine stages shrink the image 256 times: more than any slice has to give."""

FITTED_WIDTHS = (16, 32, 64, 128, 256)
"""Channels of a U-Net whose `widths` are left to the plan: all of them, or the last ones where slices are small. Those
have few pixels: wide stages cost little there and go on learning for longer (docs/benchmarks.md, "In equal time")."""


class UNetConfig(Settings):
    """U-Net (Ronneberger 2015): the default choice, good with few cases."""

    name: Literal["unet"] = "unet"
    widths: Widths | None = Field(
        (64, 128, 256),
        description="channels of each stage, the last one is the bottleneck; null: 16, 32, 64, 128, 256, without the "
        "first ones for small slices",
    )
    norm: Literal["none", "batch", "instance", "group"] = Field(
        "none", description="normalisation after each convolution"
    )
    activation: Literal["relu", "leaky_relu"] = Field(
        "relu", description="leaky_relu has the slope 0.01, as in nnU-Net"
    )
    residual: bool = Field(False, description="a shortcut around each stage's convolutions")
    deep_supervision: bool = Field(False, description="train the lower decoder stages with heads of their own")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of feature maps dropped after each stage in training")
    convs_per_stage: int = Field(2, ge=1, le=8, description="3x3 convolutions in each stage")


class SegNetConfig(Settings):
    """SegNet (Badrinarayanan 2017): no skipped feature maps, only pooling indices."""

    name: Literal["segnet"] = "segnet"
    widths: Widths = Field((64, 128, 256, 512, 512), description="channels of each stage; the default is VGG16's")
    convs_per_stage: tuple[Annotated[int, Field(ge=1, le=8)], ...] = Field(
        (2, 2, 3, 3, 3), description="3x3 convolutions of each stage, in the encoder and again in the decoder"
    )

    @model_validator(mode="after")
    def _one_count_for_each_stage(self) -> Self:
        if len(self.convs_per_stage) != len(self.widths):
            raise ValueError(f"convs_per_stage has {len(self.convs_per_stage)} entries, widths has {len(self.widths)}")
        return self


class DeepLabConfig(Settings):
    """DeepLabV3+ (Chen 2018): a wide view by dilated convolutions."""

    name: Literal["deeplab"] = "deeplab"
    encoder: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = Field(
        "resnet34", description="the ResNet that reads the image; its weights start random"
    )
    output_stride: Literal[8, 16] = Field(
        16, description="image pixels per pixel of the encoder's output; 8 costs more"
    )
    rates: tuple[Width, Width, Width] = Field(
        (6, 12, 18), description="dilations of the pyramid at output stride 16; doubled at 8, as in the paper"
    )
    width: Width = Field(256, description="channels of the pyramid and of the decoder")
    low_level_width: Width = Field(48, description="channels to which the encoder's early features are reduced")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of the pyramid's values dropped in training")


class BiSeNetConfig(Settings):
    """BiSeNetV2 (Yu 2021): the fastest of the four."""

    name: Literal["bisenet"] = "bisenet"
    detail_widths: tuple[Width, Width, Width] = Field((64, 64, 128), description="channels of the detail branch")
    semantic_widths: tuple[Width, Width, Width, Width] = Field(
        (16, 32, 64, 128), description="channels of the semantic branch: stem, then three stages"
    )
    expansion: int = Field(6, ge=1, le=16, description="widening inside a gather-and-expansion layer")
    head_width: Width = Field(1024, description="channels between the branches' union and the logits")
    booster: bool = Field(True, description="train the semantic branch with heads of its own")
    booster_width: Width = Field(128, description="channels inside each of those heads")


ModelConfig = Annotated[
    UNetConfig | SegNetConfig | DeepLabConfig | BiSeNetConfig,
    Field(discriminator="name"),
]
"""One network, chosen by `name`."""
