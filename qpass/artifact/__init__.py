"""A quantized model on disk: packed integers in `model.safetensors`, the graph and all else in `qpass.json`.

It loads without the original weights, without tracing, without pickle, and runs only ops on an allow-list.
"""

from qpass.artifact.folder import Artifact, load_artifact, save
from qpass.artifact.module import LoadedModel, load

__all__ = ["Artifact", "LoadedModel", "load", "load_artifact", "save"]
