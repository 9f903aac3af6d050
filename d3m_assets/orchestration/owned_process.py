"""``python -m d3m_assets.orchestration.owned_process MODULE ARGUMENTS…``: run a module, and end with whoever started it.

The owner holds the other end of standard input. When it closes it, or is killed, this process interrupts itself as Ctrl-C
would; one that does not answer ends after :data:`SECONDS_TO_END`.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

SECONDS_TO_END = 30.0


def end_with_owner() -> None:
    """Interrupt this process when standard input ends, from a thread."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored

    def watch() -> None:
        while os.read(0, 1):
            continue
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(SECONDS_TO_END)
        os._exit(1)

    threading.Thread(target=watch, name="owner", daemon=True).start()


def main() -> None:
    """Run the module."""
    end_with_owner()
    del sys.argv[0]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:
        raise SystemExit(0) from None


if __name__ == "__main__":
    main()
