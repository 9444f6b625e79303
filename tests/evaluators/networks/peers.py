"""pytorch-fid's and torch-fidelity's own classes, holding the weights that ship with qpass."""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest import mock

import torch
from qpass_evaluators.networks import inception_weights, weight_files


def state_dict() -> dict[str, torch.Tensor]:
    """The shipped weights under the names both packages load, with what is not shipped filled in.

    Batch-norm's scale is one in both packages' files; the 1008-way layer is random, and no feature depends on it.
    """
    state = weight_files.read(inception_weights.SHIPPED)
    for name in [n.removesuffix(".bias") for n in state if n.endswith("bn.bias")]:
        state[f"{name}.weight"] = torch.ones_like(state[f"{name}.bias"])
        state[f"{name}.num_batches_tracked"] = torch.tensor(0)
    seed = torch.Generator().manual_seed(0)
    state["fc.weight"] = torch.randn(1008, 2048, generator=seed) * 0.02
    state["fc.bias"] = torch.randn(1008, generator=seed)
    return state


def pytorch_fid() -> torch.nn.Module:
    """pytorch-fid's network: N x 3 x H x W on 0..1 to [N x 2048 x 1 x 1]."""
    from pytorch_fid import inception

    with mock.patch.object(inception, "load_state_dict_from_url", return_value=state_dict()):
        return inception.InceptionV3().eval()


def torch_fidelity(features: list[str] | None = None) -> torch.nn.Module:
    """torch-fidelity's network: uint8 N x 3 x H x W to a tuple of the features asked for."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.pth"
        torch.save(state_dict(), file)
        return FeatureExtractorInceptionV3("inception", features or ["2048"], feature_extractor_weights_path=file)
