"""`python -m emu`: the `emu` command."""

from __future__ import annotations

import sys

from emu.cli import main

if __name__ == "__main__":
    sys.exit(main())
