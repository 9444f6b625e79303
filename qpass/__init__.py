"""Post-training quantization of diffusion models, as passes over a torch.fx graph.

Names are imported when they are first used, so that `import qpass` costs nothing and never needs torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qpass.analysis import Analysis as Analysis
    from qpass.api import quantize as quantize
    from qpass.artifact import load as load
    from qpass.errors import PreconditionError as PreconditionError
    from qpass.evaluator import Evaluator as Evaluator
    from qpass.evaluator import Metric as Metric
    from qpass.evaluator import Observation as Observation
    from qpass.graph import trace as trace
    from qpass.hookspecs import hookimpl as hookimpl
    from qpass.manager import Pass as Pass
    from qpass.manager import PassContext as PassContext
    from qpass.manager import PassResult as PassResult
    from qpass.model import ModelAdapter as ModelAdapter
    from qpass.quantizer import QParams as QParams
    from qpass.quantizer import Quantizer as Quantizer

    __version__: str

_HOMES = {
    "Analysis": "qpass.analysis",
    "Evaluator": "qpass.evaluator",
    "Metric": "qpass.evaluator",
    "ModelAdapter": "qpass.model",
    "Observation": "qpass.evaluator",
    "Pass": "qpass.manager",
    "PassContext": "qpass.manager",
    "PassResult": "qpass.manager",
    "PreconditionError": "qpass.errors",
    "QParams": "qpass.quantizer",
    "Quantizer": "qpass.quantizer",
    "hookimpl": "qpass.hookspecs",
    "load": "qpass.artifact",
    "quantize": "qpass.api",
    "trace": "qpass.graph",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("qpass")
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'qpass' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
