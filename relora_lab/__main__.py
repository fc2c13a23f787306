"""`python -m relora_lab` is the command `relora-lab`."""

import sys
from pathlib import Path

from relora_lab.cli import main

if __name__ == "__main__":
    # -m puts the working folder first, where an `experiments` of one's own would hide the package's.
    if sys.path and Path(sys.path[0]).resolve() == Path.cwd():
        del sys.path[0]
    main()
