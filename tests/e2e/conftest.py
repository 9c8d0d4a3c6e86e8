"""Helpers on the path, and a last-resort deadline for every test."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support.deadline import deadline  # noqa: F401
