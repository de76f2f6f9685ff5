"""Packages that other packages use when they find them."""

import importlib
import sys


def hide_broken(*names: str) -> list[str]:
    """Make installed packages that fail to import look as if they were not there; call it before what would use them.

    `transformers` imports torchvision wherever it is installed, and a torchvision built for another torch takes
    `transformers` down with it.

    Returns:
        those that were hidden.
    """
    hidden = []
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        except (ImportError, OSError, RuntimeError):
            for module in [m for m in sys.modules if m.split(".")[0] == name]:
                del sys.modules[module]
            sys.modules[name] = None  # what Python itself takes for "not there"
            hidden.append(name)
    return hidden
