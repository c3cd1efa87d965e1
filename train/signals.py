"""SIGTERM and SIGINT ask a run to stop after the step it is in, instead of ending it wherever it is."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Which signal asked for an end, if one did."""

    def __init__(self) -> None:
        self.number: int | None = None

    def receive(self, number: int, frame: FrameType | None = None) -> None:
        """Handle signal `number`. The second interrupt from the keyboard does not wait for the step to end."""
        if self.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Note SIGTERM and SIGINT for a while; what handled them before does so again afterwards.

    Processes forked meanwhile, such as those that read videos, inherit this, so an interrupt from the keyboard, which
    goes to all of them, does not end them under the run's feet.
    """
    request = StopRequest()
    numbers = (signal.SIGTERM, signal.SIGINT)
    former = [signal.signal(number, request.receive) for number in numbers]
    try:
        yield request
    finally:
        for number, handler in zip(numbers, former, strict=True):
            signal.signal(number, handler)
