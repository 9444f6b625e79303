"""Puts `installed` on the path: what is installed, ours and a stranger's alike."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
