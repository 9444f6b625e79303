"""Finds which module, and which line of whose code, stopped a trace."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType

import attrs
import torch
from torch import nn
from torch.fx import Graph, Node
from torch.fx.experimental import _config

from qpass.errors import TraceError
from qpass.graph.nodes import attribute

_SKIPPED = (
    str(Path(torch.__file__).parent),
    str(Path(__file__).parent),
    "<string>",
    "<frozen",
    "<eval_with_key>",
)
_STDLIB = sysconfig.get_path("stdlib")
_MARKED = re.compile(
    r"marked L\['args'\]\[(\d+)\]\.size\(\)\[(\d+)\] as dynamic but your code specialized it .*?\((\d+)\)"
)
_SHAPES = logging.getLogger("torch.fx.experimental.symbolic_shapes")


@contextlib.contextmanager
def tracing(module: nn.Module) -> Iterator[None]:
    """Within it, what torch.export raises becomes a TraceError that names the module and the line."""
    watch, said = _Watch(), io.StringIO()
    propagated, _SHAPES.propagate = _SHAPES.propagate, False
    _SHAPES.addHandler(watch)
    try:
        patch = _config.patch(print_specializations=True)  # type: ignore[attr-defined]  # made at run time
        with patch, contextlib.redirect_stderr(said):
            yield
    except TraceError:
        raise
    except Exception as error:
        raise _explained(error, module, watch.fixed) from error
    finally:
        _SHAPES.removeHandler(watch)
        _SHAPES.propagate = propagated
    sys.stderr.write(said.getvalue())  # a failing export prints its whole graph: only a good one may speak


def unsupported(node: Node, module: nn.Module) -> TraceError:
    """The error for a call that no graph of ours can carry, such as a region with code of its own."""
    traces = [str(n.meta.get("stack_trace", "")) for n in (node, *_inside(node))]
    lines = re.findall(r'File "(.+?)", line (\d+)', next(filter(None, traces), ""))
    users = [f"{file}:{line}" for file, line in lines if _is_user(file)]
    path = next(reversed((node.meta.get("nn_module_stack") or {"": ("",)}).values()))[0]
    running = dict(module.named_modules()).get(path.partition("@")[0])
    place = _Place(users[-1] if users else "", running)
    return TraceError(f"cannot trace {place.text(module)}: {node.target} is no plain tensor operation")


def _inside(node: Node) -> Iterator[Node]:
    """The nodes of the graphs a call takes as arguments."""
    for source in node.all_input_nodes:
        if source.op == "get_attr" and source.graph.owning_module is not None:
            yield from getattr(attribute(source.graph.owning_module, str(source.target)), "graph", Graph()).nodes


@attrs.frozen
class _Place:
    """A line of user code, and the module that was running it."""

    where: str = ""
    running: nn.Module | None = None

    def text(self, root: nn.Module) -> str:
        names = {id(m): name for name, m in root.named_modules()}
        running = root if self.running is None or id(self.running) not in names else self.running
        return f"module '{names[id(running)]}' ({type(running).__name__}){self.where and ' at ' + self.where}"


class _Watch(logging.Handler):
    """Notes where a dynamic dimension was first fixed: the error itself comes later and does not say."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.fixed: list[_Place] = []

    def emit(self, record: logging.LogRecord) -> None:
        if str(record.msg).startswith("Specializing"):
            frames = list(traceback.walk_stack(sys._getframe()))
            self.fixed.append(_innermost(reversed(frames)))


def _explained(error: Exception, module: nn.Module, fixed: list[_Place]) -> TraceError:
    marked = _MARKED.findall(str(error))
    if marked:
        place = fixed[0] if fixed else _Place()
        which = ", ".join(f"dim {dim} of input {k} is fixed at {value}" for k, dim, value in marked)
        return TraceError(f"cannot trace {place.text(module)}: {which}, though it is to be dynamic")
    place = _innermost(traceback.walk_tb(error.__traceback__))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    if "data-dependent" in reason:
        reason = f"control flow depends on the values of a tensor ({reason})"
    return TraceError(f"cannot trace {place.text(module)}: {reason}")


def _innermost(frames: Iterable[tuple[FrameType, int]]) -> _Place:
    """From outermost to innermost frame, the last line of user code and the module whose method it is in."""
    place = _Place()
    running: nn.Module | None = None
    for frame, line in frames:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module):
            running = owner
        file = frame.f_code.co_filename
        if _is_user(file):
            place = _Place(f"{file}:{line}", running)
    return place


def _is_user(file: str) -> bool:
    return not file.startswith(_SKIPPED) and ("-packages" in file or not file.startswith(_STDLIB))
