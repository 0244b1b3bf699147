"""Puts the stored base back into the checkpoint that the stock loader takes, checking its hash:

python dev/demo/base/expand.py CHECKPOINT.safetensors [STORED.safetensors.xz]
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
STORED = HERE / "miniature.safetensors.xz"

if __name__ == "__main__":
    sys.path[0] = str(HERE.parent)  # in place of this folder: its module names are too plain to stand on the path
    from base import storage

    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    print(storage.expand(Path(sys.argv[2]) if len(sys.argv) == 3 else STORED, Path(sys.argv[1])))
