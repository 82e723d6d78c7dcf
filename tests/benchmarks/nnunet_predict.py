"""nnU-Net's predictor on a folder of NIfTI scans, with a network as large as medseg's default one.

Called by `predict_many.py --nnunet PYTHON`, in an environment of its own that has `nnunetv2`:

    nnunet/bin/python tests/benchmarks/nnunet_predict.py SCANS -o MASKS

Random weights: what is measured is the way of a scan through reading, preparing, predicting, exporting. No mirroring;
patches of 256 x 256, so that a slice of that size is one patch; two processes prepare and two export.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

STAGES = 5
RESAMPLING = {"order_z": 0, "force_separate_z": None}


def plans() -> dict[str, Any]:
    """Return nnU-Net's plans for slices of 256 x 256: five stages of 16 to 256 channels, two convolutions each."""
    network = {
        "n_stages": STAGES,
        "features_per_stage": [16 * 2**stage for stage in range(STAGES)],
        "conv_op": "torch.nn.modules.conv.Conv2d",
        "kernel_sizes": [[3, 3]] * STAGES,
        "strides": [[1, 1]] + [[2, 2]] * (STAGES - 1),
        "n_conv_per_stage": [2] * STAGES,
        "n_conv_per_stage_decoder": [2] * (STAGES - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    configuration = {
        "data_identifier": "nnUNetPlans_2d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 12,
        "patch_size": [256, 256],
        "median_image_size_in_voxels": [256.0, 256.0],
        "spacing": [0.8, 0.8],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": network,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": True,
    }
    for what, is_seg, order in (("data", False, 3), ("seg", True, 1), ("probabilities", False, 1)):
        configuration[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
        configuration[f"resampling_fn_{what}_kwargs"] = {"is_seg": is_seg, "order": order, **RESAMPLING}
    return {
        "dataset_name": "Dataset778_Benchmark",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [3.0, 0.8, 0.8],
        "original_median_shape_after_transp": [20, 256, 256],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"2d": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {}},
    }


def main() -> None:
    """Predict a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    os.environ |= {f"nnUNet_{key}": str(given.output) for key in ("raw", "preprocessed", "results")}
    os.environ |= {"nnUNet_compile": "f"}
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans())
    configuration = manager.get_configuration("2d")
    described = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "tumour": 1},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    network = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        1,
        2,
        deep_supervision=False,
    )
    print(f"nnU-Net: {sum(weight.numel() for weight in network.parameters()) / 1e6:.2f} million parameters")
    predictor = nnUNetPredictor(
        use_mirroring=False, device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False
    )
    weights = [network.state_dict()]
    predictor.manual_initialization(network, manager, configuration, weights, described, "nnUNetTrainer", None)
    scans = sorted(given.scans.glob("*.nii.gz"))
    names = [str(given.output / path.name.removesuffix(".nii.gz")) for path in scans]
    predictor.predict_from_files(
        [[str(path)] for path in scans], names, num_processes_preprocessing=2, num_processes_segmentation_export=2
    )


if __name__ == "__main__":
    main()
