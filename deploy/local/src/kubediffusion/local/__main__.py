"""``python -m kubediffusion.local``: `main`, quiet when Ctrl-C comes while Python still reads modules."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)

from kubediffusion.local.main import main  # noqa: E402 # after the line above, which is the point

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
