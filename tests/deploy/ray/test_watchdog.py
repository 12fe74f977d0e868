import threading

from fuseline.deploy.ray.watchdog import Watchdog
from tests.fakes.clock import Clock


def never() -> None:
    raise AssertionError


def test_only_a_lack_of_progress_that_lasts_counts() -> None:
    clock, live = Clock(), [True]
    watchdog = Watchdog(lambda: live[0], never, grace_s=5, clock=clock)
    assert not watchdog.look()
    live[0] = False
    assert not watchdog.look()
    clock.now += 4.9
    assert not watchdog.look()
    live[0] = True
    assert not watchdog.look()
    live[0] = False
    clock.now += 1
    assert not watchdog.look()
    clock.now += 5
    assert watchdog.look()


def test_it_ends_the_process_from_a_thread_of_its_own_once() -> None:
    ended, threads = threading.Event(), []

    def end() -> None:
        threads.append(threading.current_thread())
        ended.set()

    Watchdog(lambda: False, end, grace_s=0, look_s=0.001).start()
    assert ended.wait(10)
    threads[0].join(10)
    assert threads[0] is not threading.main_thread()
    assert len(threads) == 1


def test_a_watchdog_that_was_stopped_ends_nothing() -> None:
    looked = threading.Event()

    def is_live() -> bool:
        looked.set()
        return False

    watchdog = Watchdog(is_live, never, grace_s=60, look_s=0.001)
    watchdog.start()
    assert looked.wait(10)
    watchdog.stop()
    (thread,) = [each for each in threading.enumerate() if each.name == "fuseline-watchdog"]
    thread.join(10)
    assert not thread.is_alive()
