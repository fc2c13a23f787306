"""What torchrun says of this process in its environment; a process that it did not start is alone. Needs no torch."""

import os

from relora_lab.errors import require


def count() -> int:
    """How many processes it started, on all machines. Others set some of these variables, and never all."""
    known = all(os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"))
    return int(os.environ.get("WORLD_SIZE") or 1) if known else 1


def rank() -> int:
    """The number of this process among all; 0 leads."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def local_rank() -> int:
    """The number of this process among those on its machine, and of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if count() > 1 else 0


def require_alone(command: str) -> None:
    """Raise BadInput if torchrun started several processes for a command that has its own."""
    require(count() == 1, f"{command}: does not train in the {count()} processes of torchrun; start it without")
