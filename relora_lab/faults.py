"""Faults on purpose, for the tests of what outlives them: RELORA_LAB_FAULT="ACTION@POINT" in the environment.

The ACTION is done as soon as the process comes to the POINT, one of those that the code names by calling `point`:
kill         the process gets SIGKILL
cut:BYTES    from here on, it dies in the middle of the first file it writes that is longer
full:BYTES   from here on, writing a longer file fails as on a full disk
"""

import os
import resource
import signal

VARIABLE = "RELORA_LAB_FAULT"


def point(name: str) -> None:
    """A place where a fault can strike."""
    action, _, where = os.environ.get(VARIABLE, "").partition("@")
    if where == name:
        _strike(*action.split(":"))


def _strike(action: str, size: str = "0") -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), resource.RLIM_INFINITY))
    if action == "cut":
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # which Python ignores
