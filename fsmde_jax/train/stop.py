"""Ctrl-C and SIGTERM while a run trains: the step is finished and saved before the end."""

import logging
import signal

log = logging.getLogger(__name__)


class StopSignal:
    """Remembers SIGTERM or the first Ctrl-C, so that the loop can save; a second Ctrl-C kills.

    This holds within its `with`; afterwards signals do what they did before.

    Attributes:
      signal_number: the signal that came; None while there was none.
    """

    def __init__(self):
        self.signal_number: int | None = None

    def __enter__(self) -> "StopSignal":
        self._before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
        for number in self._before:
            signal.signal(number, self._remember)
        return self

    def _remember(self, number: int, _) -> None:
        log.warning("Got %s: saving after this step.", signal.Signals(number).name)
        self.signal_number = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
