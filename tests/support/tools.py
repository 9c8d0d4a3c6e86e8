"""Programs of the system that a test drives."""

from __future__ import annotations

import os
import shutil

import pytest

PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


def need(name: str, package: str) -> str:
    """The path of a program; without it the test is skipped, and fails under ``CI=true``."""
    found = shutil.which(name, path=PATH)
    if found is None:
        reason = f"{name} is not installed (Debian: apt-get install {package})"
        assert os.environ.get("CI") != "true", reason
        pytest.skip(reason)
    return found
