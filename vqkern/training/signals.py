"""Signals that end a run at the next step, after a checkpoint."""

import signal
from types import FrameType, TracebackType

# What a scheduler sends before it takes the machine away, a terminal that is closed, and Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)


class StopSignals:
    """Within, these signals set `received`; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.default = int(signal.SIGTERM)  # where another rank received one

    def __enter__(self) -> "StopSignals":
        # nohup has told its program not to mind that the terminal goes.
        minded = [n for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._receive) for number in minded}
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received is not None:
            raise KeyboardInterrupt
        self.received = number
