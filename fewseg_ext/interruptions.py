"""Ctrl+C and SIGTERM, told in a line."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from fewseg_ext.files import remove_unfinished

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "stopped"}


@contextmanager
def told_in_a_line() -> Iterator[None]:
    """SIGINT and SIGTERM end what is inside as Ctrl+C does, so that it tidies up, with a line and the status that a
    shell gives: 130 and 143. What ends with status 0 in spite of one is left alone."""
    if threading.current_thread() is not threading.main_thread():
        # Signals are the main thread's.
        yield
        return
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    # Ignored is what a shell's script makes of Ctrl+C for what it starts in the background; that stays so.
    before = {number: signal.getsignal(number) for number in WORDS if signal.getsignal(number) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    except BaseException as error:
        # Whatever a library made of the interruption on its way here.
        if not received or (isinstance(error, SystemExit) and not error.code):
            raise
        # Nothing is to interrupt the rest.
        for number in WORDS:
            signal.signal(number, signal.SIG_IGN)
        remove_unfinished()
        print(f"fewseg: {WORDS[signal.Signals(received[0])]}", file=sys.stderr, flush=True)
        sys.exit(128 + received[0])
    finally:
        for number, action in before.items():
            # None is a handler that Python did not install, and cannot install again.
            signal.signal(number, signal.SIG_DFL if action is None else action)
