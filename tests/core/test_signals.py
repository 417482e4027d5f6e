"""The polite stop, with real signals to this process."""

import gc
import os
import signal
import sys
import threading
import time

import pytest

from rgbd_reid_jax.core.signals import StopRequest, interrupts_kept

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


class _Interrupted:
    def __del__(self):
        send(signal.SIGINT)


def in_a_finalizer():
    _Interrupted()


def in_a_callback_of_the_collection():
    gc.callbacks.append(callback := lambda phase, _info: send(signal.SIGINT) if phase == "start" else None)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(callback)


@pytest.mark.timeout(0)  # its timer would be the one that is tested
@pytest.mark.parametrize("place", [in_a_finalizer, in_a_callback_of_the_collection])
def test_an_interrupt_that_python_drops_comes_again(place):
    before = sys.unraisablehook, signal.getsignal(signal.SIGALRM)

    def work():
        place()
        time.sleep(10)

    with pytest.raises(KeyboardInterrupt), interrupts_kept():
        work()
    assert (sys.unraisablehook, signal.getsignal(signal.SIGALRM)) == before
    time.sleep(0.05)  # nothing comes afterwards
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_other_dropped_exceptions_are_told_as_before(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)

    class Failing:
        def __del__(self):
            raise OSError("full")

    with interrupts_kept():
        Failing()
    assert [str(one.exc_value) for one in told] == ["full"]
