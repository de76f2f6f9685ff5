"""The book's build: which chapters are stale, executing them, staging the pages, rendering with Jupyter Book."""

from pathlib import Path


def built_pages(scale: str) -> Path:
    """The folder of the book's pages at `scale` ("smoke", "cpu" or "gpu"), built where they are not fresh; or those
    that `python -m book.builder.ci` made ("ci").

    Raises:
        BuildError: they cannot be built, or CI's are not there.
    """
    from book.builder import (
        render,
    )  # late: settings of threads must be able to come before torch

    return render.built_pages(scale)
