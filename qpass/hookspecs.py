"""Everything a plugin can do, in one place. Implement any of these with `@qpass.hookimpl`.

A plugin is a module (or object) named by a `qpass` entry point, or a file given with `--plugin`. The
`register_*` hooks return classes; each class carries the `name` a recipe uses and is its own configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.fx import GraphModule

    from qpass.analysis import Analysis
    from qpass.evaluator import Evaluator
    from qpass.manager import Pass, PassContext, PassResult
    from qpass.model import ModelAdapter
    from qpass.quantizer import Quantizer

hookspec = pluggy.HookspecMarker("qpass")
hookimpl = pluggy.HookimplMarker("qpass")


@hookspec
def register_passes() -> Sequence[type[Pass]]:
    """Return the passes this plugin brings."""
    raise AssertionError("a specification is never called")


@hookspec
def register_models() -> Sequence[type[ModelAdapter]]:
    """Return the model adapters this plugin brings."""
    raise AssertionError("a specification is never called")


@hookspec
def register_evaluators() -> Sequence[type[Evaluator]]:
    """Return the evaluators this plugin brings."""
    raise AssertionError("a specification is never called")


@hookspec
def register_quantizers() -> Sequence[type[Quantizer]]:
    """Return the quantizers this plugin brings: ways to fit scales, zero points and codebooks."""
    raise AssertionError("a specification is never called")


@hookspec
def register_analyses() -> Sequence[type[Analysis[Any]]]:
    """Return the analyses a recipe may name, such as calibration sets."""
    raise AssertionError("a specification is never called")


@hookspec
def register_kernels() -> Sequence[type]:
    """Return integer kernels, each a class that says which nodes it can carry out."""
    raise AssertionError("a specification is never called")


@hookspec
def register_ops() -> Sequence[Callable[..., Any]]:
    """Return the functions this plugin's passes put into graphs, so that artifacts may load them."""
    raise AssertionError("a specification is never called")


@hookspec
def before_pass(step: Pass, graph: GraphModule, ctx: PassContext) -> None:
    """Called before each pass runs."""


@hookspec
def after_pass(step: Pass, result: PassResult, ctx: PassContext) -> None:
    """Called after each pass has run and its graph has been checked."""


@hookspec
def report_ready(report: dict[str, Any], folder: Path) -> None:
    """Called when `report.json` has been written to `folder`."""
