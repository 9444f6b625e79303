"""Find plugins, ask each what it brings, and keep it under its name."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pluggy

from qpass import hookspecs
from qpass.errors import PluginError, did_you_mean
from qpass.source import home, source_hash

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
KINDS = ("passes", "models", "evaluators", "quantizers", "analyses", "kernels")
SINGULAR = {
    "passes": "pass",
    "models": "model",
    "evaluators": "evaluator",
    "quantizers": "quantizer",
    "analyses": "analysis",
    "kernels": "kernel",
}


@attrs.frozen(kw_only=True)
class Broken:
    """A plugin that could not be used, and why."""

    plugin: str
    reason: str


@attrs.frozen(kw_only=True)
class Catalog:
    """Every plugin class by kind and name, the graph ops plugins bring, and the plugins that failed."""

    classes: Mapping[str, Mapping[str, type]]
    ops: Mapping[str, tuple[Callable[..., Any], str]]
    broken: tuple[Broken, ...]
    hook: Any

    def find(self, kind: str, name: str) -> type:
        """The class of that name; a `PluginError` with the nearest name where there is none."""
        known = self.classes[kind]
        if name in known:
            return known[name]
        message = f"unknown {SINGULAR[kind]} {name!r}, {did_you_mean(name, known)}"
        if self.broken:
            message += f" (broken plugins: {', '.join(b.plugin for b in self.broken)}; see `qpass list {kind}`)"
        raise PluginError(message)


def catalog(files: Sequence[Path] = ()) -> Catalog:
    """Load every installed plugin, and the plugin `files`, into a fresh catalog."""
    manager = pluggy.PluginManager("qpass")
    manager.add_hookspecs(hookspecs)
    broken: list[Broken] = []
    for entry in sorted(importlib.metadata.entry_points(group="qpass"), key=lambda e: (e.name, e.value)):
        label = f"{entry.name} ({entry.value})"
        try:
            _register(manager, entry.load(), label)
            if named := home(entry.module):
                source_hash(named)  # of what was loaded, should somebody edit it from here on
        except (
            Exception,
            SystemExit,
        ) as error:  # a stranger's plugin may raise anything; the rest must still work
            broken.append(Broken(plugin=label, reason=_one_line(error)))
    for name, file in _module_names(files).items():
        try:
            _register(manager, _load_file(name, file), str(file))
        except (Exception, SystemExit) as error:
            raise PluginError(f"plugin {str(file)!r} cannot be loaded: {_one_line(error)}") from error
    given = frozenset(map(str, files))
    classes = {kind: _collect(manager, kind, broken, given) for kind in KINDS}
    ops = _collect_ops(manager, broken, given)
    return Catalog(classes=classes, ops=ops, broken=tuple(broken), hook=manager.hook)


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


def _register(manager: pluggy.PluginManager, plugin: object, name: str) -> None:
    """Register a plugin whole or not at all; a hook that is none is a mistake, not a plugin that does nothing."""
    try:
        manager.register(plugin, name=name)
        for caller in manager.get_hookcallers(plugin) or ():
            if not caller.has_spec():
                known = [name for name, hook in vars(hookspecs).items() if hasattr(hook, "qpass_spec")]
                raise PluginError(f"unknown hook {caller.name!r}, {did_you_mean(caller.name, known)}")
    except Exception:
        if manager.has_plugin(name):
            manager.unregister(name=name)
        raise


def _module_names(files: Sequence[Path]) -> dict[str, Path]:
    """Each file, once, under the module name that artifacts and fingerprints know it by."""
    found: dict[str, Path] = {}
    for file in files:
        name = "qpass_plugin_" + re.sub(r"\W", "_", file.stem)
        other = found.setdefault(name, file)
        if other.resolve() != file.resolve():
            raise PluginError(
                f"the plugin files {str(other)!r} and {str(file)!r} have one name; rename one of them"
            )
    return found


def _load_file(name: str, file: Path) -> ModuleType:
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}")
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError("a plugin file ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    source_hash(name)  # of what is loaded next, should somebody edit it from here on
    spec.loader.exec_module(module)
    return module


def _contract(kind: str) -> type:
    """The abstract class that plugins of this kind inherit; imported late, since it needs torch."""
    if kind == "passes":
        from qpass.manager import Pass as Contract
    elif kind == "models":
        from qpass.model import ModelAdapter as Contract  # type: ignore[assignment]
    elif kind == "evaluators":
        from qpass.evaluator import Evaluator as Contract  # type: ignore[assignment]
    elif kind == "quantizers":
        from qpass.quantizer import Quantizer as Contract  # type: ignore[assignment]
    elif kind == "analyses":
        from qpass.analysis import Analysis as Contract  # type: ignore[assignment]
    else:
        return object
    return Contract


def _collect(manager: pluggy.PluginManager, kind: str, broken: list[Broken], given: Set[str]) -> dict[str, type]:
    found: dict[str, type] = {}
    for impl in getattr(manager.hook, f"register_{kind}").get_hookimpls():
        try:
            classes = impl.function()
            _check(kind, classes)
        except (Exception, SystemExit) as error:
            _blame(impl.plugin_name, error, broken, given)
            continue
        for cls in classes:
            other = found.setdefault(cls.name, cls)
            if other is not cls:
                raise PluginError(
                    f"two {kind} are named {cls.name!r}: one in {_where(other)}, one in {_where(cls)}; "
                    "uninstall or rename one of them"
                )
    return dict(sorted(found.items()))


def _blame(plugin: str, error: BaseException, broken: list[Broken], given: Set[str]) -> None:
    """What was asked for by --plugin must work; what merely happens to be installed need not."""
    if plugin in given:
        raise PluginError(f"plugin {plugin!r}: {_one_line(error)}") from error
    broken.append(Broken(plugin=plugin, reason=_one_line(error)))


def _where(cls: type) -> str:
    return getattr(sys.modules.get(cls.__module__), "__file__", None) or cls.__module__


def _check(kind: str, classes: Any) -> None:
    """Raise where a `register_*` hook returned anything but proper classes of its kind."""
    contract, hook = _contract(kind), f"register_{kind}"
    if not isinstance(classes, Sequence) or isinstance(classes, str | bytes):
        raise TypeError(f"{hook} must return a sequence of classes, not {classes!r}")
    for cls in classes:
        if not isinstance(cls, type) or not issubclass(cls, contract):
            raise TypeError(f"{hook} must return subclasses of qpass.{contract.__name__}, not {cls!r}")
        name = getattr(cls, "name", None)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise TypeError(f"{cls.__qualname__}.name must be kebab-case text, not {name!r}")
        if inspect.isabstract(cls):
            missing = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
            raise TypeError(f"{cls.__qualname__} does not define {missing}")
        if kind != "kernels" and (not attrs.has(cls) or cls.__hash__ is None):
            raise TypeError(
                f"{cls.__qualname__} must be a frozen attrs class: decorate it @attrs.frozen(kw_only=True)"
            )


def _collect_ops(
    manager: pluggy.PluginManager, broken: list[Broken], given: Set[str]
) -> dict[str, tuple[Callable[..., Any], str]]:
    """Graph ops by the name they have in an artifact, each with the plugin that brings it."""
    from qpass.artifact.ops import plugin_op_name

    ops: dict[str, tuple[Callable[..., Any], str]] = {}
    for impl in manager.hook.register_ops.get_hookimpls():
        try:
            found = impl.function()
            if not isinstance(found, Sequence):
                raise TypeError(f"register_ops must return a sequence of functions, not {found!r}")
            named = {plugin_op_name(op): op for op in found}
        except (Exception, SystemExit) as error:
            _blame(impl.plugin_name, error, broken, given)
            continue
        for name, op in named.items():
            other, plugin = ops.setdefault(name, (op, impl.plugin_name))
            if other is not op:
                raise PluginError(f"two graph ops are named {name!r}: one of {plugin}, one of {impl.plugin_name}")
    return ops
