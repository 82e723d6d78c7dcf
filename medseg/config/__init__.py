"""The settings of every component (`settings`, `networks`) and the door to configuration files (`load`)."""

from medseg.config.load import load, parse
from medseg.config.settings import (
    AugmentConfig,
    BatchConfig,
    ChannelConfig,
    Config,
    DataConfig,
    PredictConfig,
    PrepareConfig,
    TrainConfig,
)

__all__ = [
    "AugmentConfig",
    "BatchConfig",
    "ChannelConfig",
    "Config",
    "DataConfig",
    "PredictConfig",
    "PrepareConfig",
    "TrainConfig",
    "load",
    "parse",
]
