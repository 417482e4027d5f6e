"""The polite stop, with real signals to this process."""

import os
import signal
import threading

import pytest

from rgbd_reid_jax.core.signals import StopRequest

_BOTH = [signal.SIGINT, signal.SIGTERM]


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", _BOTH)
def test_the_first_signal_is_noted(number):
    before = [signal.getsignal(one) for one in _BOTH]
    with StopRequest() as stop:
        assert not stop.requested
        send(number)
        assert stop.requested
        assert stop.name == number.name
        assert [signal.getsignal(one) for one in _BOTH] == before  # the next one is not caught
    assert [signal.getsignal(one) for one in _BOTH] == before


def test_the_second_interrupt_interrupts_at_once():
    with StopRequest() as stop:
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert stop.requested


def test_handlers_come_back_after_an_error():
    before = [signal.getsignal(one) for one in _BOTH]
    with pytest.raises(OSError, match="full"), StopRequest():
        raise OSError("full")
    assert [signal.getsignal(one) for one in _BOTH] == before


def test_other_threads_cannot_catch_signals_and_need_not():
    seen = []

    def work():
        with StopRequest() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
