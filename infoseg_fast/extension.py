"""Loads the compiled extension `infoseg_fast._C` on first use. Only this module does. The package
works without it.
"""

import functools
import importlib
import json
from pathlib import Path
from types import ModuleType

BUILD_RECORD = Path(__file__).parent / "_build.json"


@functools.cache
def _load() -> tuple[ModuleType | None, str | None]:
    try:
        return importlib.import_module("infoseg_fast._C"), None
    except ImportError as error:
        return None, _build_reason() or f"importing infoseg_fast._C failed: {error}"


def _build_reason() -> str | None:
    """The reason why the build left the extension out, as setup.py recorded it, or None."""
    if not BUILD_RECORD.exists():
        return "the C++ extension has not been built (run `pip install .` in the checkout)"
    reason = build_record().get("cpp", {}).get("reason")
    return f"the C++ extension was not built: {reason}" if reason else None


def compiled() -> ModuleType | None:
    """The extension module. None: it cannot be imported (`unavailable()` gives the reason)."""
    return _load()[0]


def unavailable() -> str | None:
    """The reason why the extension cannot be used. None: it can."""
    return _load()[1]


def build_record() -> dict:
    """The record of setup.py by library ("cpp", "cuda"). Empty: there is no readable record."""
    try:
        return json.loads(BUILD_RECORD.read_text())
    except (OSError, ValueError):
        return {}
