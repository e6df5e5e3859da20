"""`python -m zs_lib` is the same as `zs`."""

from __future__ import annotations

import sys

from zs_lib.cli import main

if __name__ == "__main__":
    sys.exit(main())
