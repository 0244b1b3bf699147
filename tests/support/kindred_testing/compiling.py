"""torch.compile in an environment whose path has a space."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def linkable():
    """torch's inductor gives the linker the folder of torch's libraries without quotes: here by a name without a space."""
    from torch.utils import cpp_extension

    before = cpp_extension.TORCH_LIB_PATH
    if " " not in before or os.name == "nt":
        yield
        return
    with tempfile.TemporaryDirectory(prefix="kindred-") as folder:
        link = Path(folder) / "torch"
        link.symlink_to(before, target_is_directory=True)
        cpp_extension.TORCH_LIB_PATH = str(link)
        try:
            yield
        finally:
            cpp_extension.TORCH_LIB_PATH = before
