"""One program at a time: who has a lock, who is refused, and what frees it."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from train import lock as lock_module
from train.errors import InputError
from train.lock import Lock

HOLDER = """
import os, sys, time
from pathlib import Path
from train.lock import Lock
with Lock(Path(sys.argv[1])):
    worker = os.fork() if sys.argv[2] == "forks" else 1
    if worker == 0:
        time.sleep(60)
    print(worker, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(lock_module, "PATIENCE", 0.2)


@pytest.fixture
def holder():
    started: list[subprocess.Popen[str]] = []

    def start(folder, how="alone"):
        process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder), how], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout
        return process, int(process.stdout.readline())

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_the_second_is_refused_and_told_by_whom(tmp_path, holder, impatient):
    process, _ = holder(tmp_path / "run")
    with (
        pytest.raises(InputError, match=rf"run: is in use by process {process.pid} on \S+ since 2\d\d\d-"),
        Lock(tmp_path / "run"),
    ):
        pass
    assert (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize("how", ["alone", "forks"])
def test_a_killed_holder_frees_it_though_its_forks_live(tmp_path, holder, how):
    process, worker = holder(tmp_path / "run", how)
    try:
        process.send_signal(signal.SIGKILL)
        with Lock(tmp_path / "run") as lock:
            assert str(os.getpid()) in lock.path.read_text()
        if how == "forks":
            os.kill(worker, 0)
    finally:
        if how == "forks":
            os.kill(worker, signal.SIGKILL)


def test_nothing_is_left_of_it(tmp_path):
    with Lock(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run" / ".lock").exists()
    with Lock(tmp_path / "list.jsonl", is_file=True):
        assert [path.name for path in tmp_path.iterdir()] == [".list.jsonl.lock"]
    assert list(tmp_path.iterdir()) == []
    with Lock(tmp_path / "run"):
        (tmp_path / "run" / "log.jsonl").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["log.jsonl"]


def test_the_same_process_is_refused_and_does_not_lose_it(tmp_path, impatient):
    with Lock(tmp_path) as lock:
        with pytest.raises(InputError, match=f"is in use by this very process, {os.getpid()}"), Lock(tmp_path):
            pass
        script = "import sys; from pathlib import Path; from train.lock import Lock; Lock(Path(sys.argv[1])).take()"
        other = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
        )
        assert f"in use by process {os.getpid()} on" in other.stderr
        assert not lock.is_lost


def test_a_fork_that_ends_does_not_give_it_up(tmp_path, impatient):
    with Lock(tmp_path) as lock:
        if (child := os.fork()) == 0:
            lock.release()
            try:
                Lock(tmp_path).take()
            except InputError:
                os._exit(3)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        assert not lock.is_lost


def test_who_waits_gets_it(tmp_path, holder):
    process, _ = holder(tmp_path / "run")
    threading.Timer(0.5, process.terminate).start()
    with Lock(tmp_path / "run") as lock:
        assert str(os.getpid()) in lock.path.read_text()


def test_a_removed_folder(tmp_path, holder, impatient):
    with Lock(tmp_path / "run") as lock:
        lock.path.unlink()
        assert lock.is_lost
        lock.renew()
        assert not lock.is_lost
        lock.path.unlink()
        process, _ = holder(tmp_path / "run")  # another has taken the place
        assert lock.is_lost
        with pytest.raises(InputError, match=f"in use by process {process.pid}"):
            lock.renew()
    assert lock.path.exists()  # the other's


def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock_module.fcntl, "lockf", refuse)
    with Lock(tmp_path) as lock:
        assert not lock.is_lost
    assert f"warning: {lock.path}: No locks available; no other program is kept out" in capsys.readouterr().err


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to("gone")
    for place in ("file", "file/below", "nowhere"):
        refused = pytest.raises(InputError, match=f"{place.split('/')[0]} is a file, expected a folder")
        with refused, Lock(tmp_path / place):
            pass


def _take_often(folder, until, out):
    held = 0
    while time.monotonic() < until:
        try:
            with Lock(folder) as lock:
                assert not lock.is_lost
                with (folder / "inside").open("x"):
                    pass
                time.sleep(0.001)
                (folder / "inside").unlink()
                held += 1
        except InputError:
            pass
    out.put(held)


def test_never_two_at_once(tmp_path):
    """Four processes make, take, give up and remove one folder, all the time; `open("x")` finds a second one inside."""
    context = multiprocessing.get_context("fork")
    out = context.SimpleQueue()
    arguments = (tmp_path / "run", time.monotonic() + 3, out)
    processes = [context.Process(target=_take_often, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert sum(out.get() for _ in processes) > 10
    assert list(tmp_path.rglob("*")) in ([], [tmp_path / "run"])
