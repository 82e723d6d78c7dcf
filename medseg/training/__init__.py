"""Training: the run, the loop, the losses."""

from medseg.training.run import TrainResult, train

__all__ = ["TrainResult", "train"]
