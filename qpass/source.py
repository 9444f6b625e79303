"""The version of code: a hash of the Python sources that are at work, whatever has become of their files since."""

from __future__ import annotations

import hashlib
import sys
import uuid
from pathlib import Path
from types import ModuleType

_SEEN: dict[Path, tuple[object, bytes]] = {}  # each file's hash, and what was loaded from it then


def source_hash(package: str) -> str:
    """A hash of the sources of a loaded package or module. An edit shows once the edited file is loaded anew."""
    origin = Path(str(sys.modules[package].__file__))
    files = sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]
    inside = f"{package}."
    loaded = {
        Path(file): module
        for name, module in list(sys.modules.items())
        if (name == package or name.startswith(inside)) and (file := getattr(module, "__file__", None))
    }
    total = hashlib.sha256()
    for file in files:
        total.update(_hash(file, loaded.get(file)))
    return total.hexdigest()[:16]


def _hash(file: Path, module: ModuleType | None) -> bytes:
    """The hash of a file's content; of one that is loaded, as it was when this was first asked of it."""
    # a module has a new spec each time it is loaded, and a script has none
    loaded = module and (module.__spec__ or module)
    before, known = _SEEN.get(file, (loaded, b""))
    if known and loaded is not None and before is loaded:
        return known
    found = hashlib.sha256(file.read_bytes()).digest()
    if loaded is not None and before is None and known != found:
        # edited at about the time it was loaded: nobody can tell which of the two it is
        found = uuid.uuid4().bytes
    _SEEN[file] = loaded, found
    return found


def home(module: str) -> str | None:
    """The outermost package or module with a file that a module lies in; a namespace package has none itself."""
    path = module.split(".")
    names = [".".join(path[:depth]) for depth in range(1, len(path) + 1)]
    return next((name for name in names if getattr(sys.modules.get(name), "__file__", None)), None)
