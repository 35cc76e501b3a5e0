"""diffopt.machine.process: every way in which another process falls silent, and that nothing of it is left."""

import os
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from support.processes import gone

from diffopt.machine.log import last_words_of_log
from diffopt.machine.process import Child, lines_of_program

ROOT = Path(__file__).parents[2]


@pytest.fixture
def start(tmp_path):
    """Start Python on lines that know ``fd``, ``say`` and the modules os, subprocess, sys, time."""
    children = []

    def call(*lines, **settings):
        begin = "import os, subprocess, sys, time; fd = int(sys.argv[1]); say = lambda words: os.write(fd, words)"
        code = "\n".join([begin, "os.set_inheritable(fd, False)", *lines])
        with open(tmp_path / "log.txt", "wb") as log:
            command = [sys.executable, "-S", "-c", code]
            child = Child(lambda fd: [*command, str(fd)], log, dict(os.environ), **settings)
        children.append(child)
        return child

    yield call
    for child in children:
        child.end()


def soon(seconds=20.0):
    return time.monotonic() + seconds


def test_lines_come_one_by_one_and_then_it_has_ended(start):
    child = start(r"say(b'one\ntwo\nth'); time.sleep(0.2); say(b'ree\n'); print('bye'); sys.exit(3)")
    assert [child.line(soon()) for _ in range(4)] == [b"one", b"two", b"three", "ended"]
    child.await_exit(20)
    assert child.end() == child.end() == 3


@pytest.mark.parametrize("lines", ["say(b'cut')", "say(b'x' * 5000); time.sleep(60)"])
def test_what_is_no_line_is_garbage(start, lines):
    assert start(lines).line(soon()) == "garbage"


def test_a_long_line_may_be_allowed(start):
    assert start(r"say(b'x' * 5000 + b'\n')", longest=6000).line(soon()) == b"x" * 5000


def test_a_deadline_and_no_spinning(start):
    child = start("time.sleep(60)")
    began, used = time.monotonic(), time.process_time()
    assert child.line(soon(0.5)) == "deadline"
    assert 0.5 <= time.monotonic() - began < 10
    assert time.process_time() - used < 0.3
    assert child.end() == -signal.SIGKILL


def test_a_watched_descriptor_ends_the_waiting(start):
    read, write = os.pipe()
    child = start(r"say(b'one\n'); time.sleep(60)", watched=read)
    assert child.line(soon()) == b"one"
    os.write(write, b"!")
    assert child.line(soon()) == "stopped"
    os.close(read)
    os.close(write)


def test_it_is_told_lines_and_knows_when_it_is_alone(start):
    child = start("for line in sys.stdin.buffer:", "    say(line.upper())", r"say(b'alone\n')")
    child.tell(b"hello")
    assert child.line(soon()) == b"HELLO"
    child.end()
    child = start("sys.exit()")
    child.await_exit(20)
    child.tell(b"nobody listens")
    assert child.line(soon()) == "ended"


def test_nothing_of_its_group_is_left(start):
    code = "held = subprocess.Popen(['sleep', '600'], pass_fds=[fd])"
    child = start(code, r"say(f'{held.pid}\n'.encode())")
    heir = int(child.line(soon()))
    assert child.line(soon()) == "ended", "though the heir holds the descriptor"
    assert not gone(heir, within=0)
    assert child.end() == 0
    assert gone(heir)


def test_one_that_is_asked_to_end_may_finish(start):
    child = start(
        "import signal",
        r"signal.signal(signal.SIGTERM, lambda *rest: (say(b'bye\n'), sys.exit(7)))",
        r"say(b'here\n'); time.sleep(60)",
    )
    assert child.line(soon()) == b"here"
    child.ask_to_end(20)
    assert (child.line(soon()), child.end()) == (b"bye", 7)


def test_a_plain_program_reports_what_it_prints(tmp_path):
    with open(tmp_path / "log.txt", "wb") as log:
        child = Child(lambda _: ["sh", "-c", "cat; echo one; echo two >&2"], log, dict(os.environ), plain=True)
    with child:
        assert [child.line(soon()), child.line(soon())] == [b"one", "ended"]
    assert last_words_of_log(tmp_path / "log.txt") == "two"


def test_one_that_cannot_start_leaves_no_descriptor(tmp_path):
    before = os.listdir("/proc/self/fd")
    with open(tmp_path / "log.txt", "wb") as log, pytest.raises(FileNotFoundError):
        Child(lambda _: [str(tmp_path / "gone")], log, {})
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("", None),
        ("one\n  two  \n\n", "two"),
        ("Current thread 0x1 (most recent call first):\n  File a, line 1\n  File b\n", "File a, line 1"),
        ("x" * 300, "x" * 200),
    ],
)
def test_last_words(tmp_path, log, words):
    (tmp_path / "log.txt").write_text(log)
    assert last_words_of_log(tmp_path / "log.txt") == words


def test_last_words_are_harmless_and_a_log_of_any_size_is_not_read_whole(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("\x1b]0;title\x07" + "\u202e" + "x" * 900)
    words = last_words_of_log(log)
    assert words.startswith("\\u001b]0;title\\u0007\\u202ex")
    assert len(words) < 250
    with open(log, "r+b") as file:
        file.truncate(2**30)
        file.seek(0, os.SEEK_END)
        file.write(b"\nthe end\n")
    tracemalloc.start()
    try:
        assert last_words_of_log(log) == "the end"
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


PARENT = """
import os, sys, threading, time
from diffopt.machine.process import Child
code = "import ctypes, os, subprocess, sys; held = subprocess.Popen(['sleep', '600']); "
code += "print(os.getpid(), held.pid, flush=True); ctypes.PyDLL(None).sleep(600)"  # in C, and Python's lock with it
command = {"worker": [sys.executable, "-S", "-c", code], "plain": ["sh", "-c", "sleep 600 & echo $$ $!; wait"]}
def start():
    with open("log.txt", "wb") as log:
        child.append(Child(lambda fd: command[sys.argv[1]], log, dict(os.environ), plain=sys.argv[1] == "plain"))
child = []
thread = threading.Thread(target=start)
thread.start()
thread.join()  # whoever started it is no more, the process is
if sys.argv[1] == "plain":
    open("log.txt", "wb").write(child[0].line(time.monotonic() + 60))
open("parent", "w").write("ready")
time.sleep(600)
"""


@pytest.mark.parametrize("kind", ["worker", "plain"])
def test_a_killed_parent_takes_all_along_also_what_holds_the_lock(tmp_path, kind):
    with subprocess.Popen([sys.executable, "-c", PARENT, kind], cwd=tmp_path) as parent:
        until = soon(60)
        while not (tmp_path / "parent").exists() or len(pids := (tmp_path / "log.txt").read_text().split()) < 2:
            assert parent.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        assert not any(gone(pid, within=0.3) for pid in pids)
        parent.kill()
    assert all(gone(pid, within=2.0) for pid in pids)


EARLY = """
import os, subprocess, sys, time
from diffopt.machine import process
real = subprocess.Popen
def slow(command, **settings):  # the parent is killed just after the start, before it gets on
    started = real(command, **settings)
    time.sleep(0 if "read" in command[-1] else 600)
    return started
if sys.argv[1] == "at the start":
    process.subprocess.Popen = slow
code = "import os, subprocess as s; held = s.Popen(['sleep', '600']); print(os.getpid(), held.pid, flush=True)"
with open("log.txt", "wb") as log:
    child = process.Child(lambda fd: [sys.executable, "-S", "-c", code + sys.argv[2]], log, dict(os.environ))
child.await_exit(60)
open("parent", "w").write("ready")
time.sleep(600)  # before it kills what is left of the group
"""


@pytest.mark.parametrize(("moment", "then"), [("at the start", "; held.wait()"), ("after its end", "")])
def test_a_parent_may_be_killed_at_any_moment(tmp_path, moment, then):
    with subprocess.Popen([sys.executable, "-c", EARLY, moment, then], cwd=tmp_path) as parent:
        until = soon(60)
        ready = "log.txt" if moment == "at the start" else "parent"
        while not (tmp_path / ready).exists() or len(pids := (tmp_path / "log.txt").read_text().split()) < 2:
            assert parent.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        assert not gone(pids[1], within=0.3)
        parent.kill()
    assert all(gone(pid, within=2.0) for pid in pids)


def test_a_program_is_asked_and_nothing_of_it_is_left(tmp_path):
    code = "echo $$; sleep 600 & echo $!; echo a word >&2; echo; echo more >&2"
    (shell, heir, empty), complaints = lines_of_program(["sh", "-c", code], dict(os.environ), 60)
    assert (empty, complaints) == (b"", ["a word", "more"])
    assert gone(int(shell))
    assert gone(int(heir))
    assert lines_of_program(["sleep", "600"], {"PATH": os.environ["PATH"]}, 0.2) == (
        [],
        ["it did not answer within 0.2 s"],
    )
    assert lines_of_program([str(tmp_path / "gone")], {}, 60) == ([], ["No such file or directory"])


@pytest.mark.parametrize("end", ["exit 3", "kill -9 $$", "head -c 9000 /dev/zero; echo", "printf cut"])
def test_what_a_program_says_may_count_only_as_a_whole(end):
    said = ["sh", "-c", f"echo one; {end}"]
    assert lines_of_program(said, dict(os.environ), 60)[0][0] == b"one"
    assert lines_of_program(said, dict(os.environ), 60, whole=True)[0] == []
    late = ["sh", "-c", "echo one; exec >&-; sleep 0.3"]
    assert lines_of_program(late, dict(os.environ), 60, whole=True)[0] == [b"one"]


def test_a_line_that_is_too_long_counts_no_more_than_what_comes_after_it(tmp_path):
    """Also where it comes at once with its end."""
    (tmp_path / "said").write_bytes(b"one\n" + bytes(9000) + b"\ntwo\n")
    said = ["dd", f"if={tmp_path}/said", "bs=64k", "status=none"]
    assert lines_of_program(said, dict(os.environ), 60) == ([b"one"], [])


def test_nothing_else_starts_a_process():
    files = [
        path
        for path in (ROOT / "diffopt").rglob("*.py")
        if re.search("^ *(import|from) subprocess", path.read_text(), re.M)
    ]
    assert files == [ROOT / "diffopt" / "machine" / "process.py"]


def test_nothing_else_starts_a_group():
    starts = re.compile(r"start_new_session|process_group=|setsid\(")
    files = [path for path in (ROOT / "diffopt").rglob("*.py") if starts.search(path.read_text())]
    assert files == [ROOT / "diffopt" / "machine" / "process.py"]


def test_of_many_complaints_the_end_is_read():
    code = "head -c 200000 /dev/zero | tr '\\0' x >&2; echo >&2; echo the last one >&2"
    _, complaints = lines_of_program(["sh", "-c", code], dict(os.environ), 60)
    assert complaints[-1] == "the last one"
    assert sum(map(len, complaints)) <= 65536
