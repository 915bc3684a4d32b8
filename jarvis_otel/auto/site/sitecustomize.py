"""What `jarvis run` puts in front of PYTHONPATH: the interpreter imports it before the application."""

import importlib
import sys
from pathlib import Path

_here = str(Path(__file__).parent)


def _chain() -> None:
    """Steps aside, and lets a sitecustomize of the user's own do its work."""
    sys.path[:] = [entry for entry in sys.path if entry != _here]
    own = sys.modules.pop("sitecustomize", None)
    try:
        importlib.import_module("sitecustomize")
    except ModuleNotFoundError as error:
        if error.name != "sitecustomize":
            raise
        if own is not None:
            sys.modules["sitecustomize"] = own


def _activate() -> None:
    try:
        importlib.import_module("jarvis_otel.auto")
    except ModuleNotFoundError as error:
        # another interpreter, started by the application, has us in its PYTHONPATH but not installed
        if error.name != "jarvis_otel":
            raise


try:
    _chain()
finally:
    _activate()
