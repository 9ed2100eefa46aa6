"""``python -m cmtvision`` is the command ``cmtvision``."""

import sys

from cmtvision.cli import main

if __name__ == "__main__":
    sys.exit(main())
