"""Run by path, in an interpreter of its own: become a command that dies with its parent.

``python -I -S launch.py PARENT COMMAND ARGUMENT…``

The kernel kills the command when the process that started it ends, however that ends (PR_SET_PDEATHSIG). Doing this
between fork and exec in the parent would run Python code in the child of a process with threads, which may deadlock;
an interpreter without site-packages costs 20 ms.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Replace this process by the command."""
    parent = int(sys.argv[1])
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise SystemExit(f"prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:  # it died before the kernel was told
        raise SystemExit("the process that started this one is gone")
    # Python ignores SIGPIPE, and an ignored signal stays ignored across exec.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 # the very purpose


if __name__ == "__main__":
    main()
