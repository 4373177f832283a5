"""Programs that are started as forks end as others do: with their exit code, by a signal, in time or never."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import forks
import pytest


def program(folder: Path, text: str) -> list[str]:
    path = folder / "program.py"
    path.write_text(text)
    return [sys.executable, str(path)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("print('well')", 0, "well"),
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('words')", 1, ""),
        ("assert False, 'why'", 1, "AssertionError: why"),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
        ("import os; os._exit(5)", 5, ""),
        ("import atexit; atexit.register(print, 'at exit')", 0, "at exit"),
        (
            "import threading, time\n"
            "threading.Thread(target=lambda: (time.sleep(0.2), print('late'))).start()",
            0,
            "late",
        ),
        ("import os; print(os.environ['GIVEN'], os.environ.get('HOME'))", 0, "yes None"),
        (
            "import sys; print(sys.stdin.read() == '', __name__, len(sys.argv))",
            0,
            "True __main__ 1",
        ),
    ],
)
def test_a_program_ends_with_its_code_and_output(
    tmp_path: Path, text: str, code: int, said: str
) -> None:
    env = {"GIVEN": "yes"}
    ended, output = forks.run("root", program(tmp_path, text), tmp_path / "log", env=env)
    assert ended == code and said in output, output


def test_a_program_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        forks.run(
            "root", program(tmp_path, "while True: pass"), tmp_path / "log", env={}, timeout=0.3
        )


def test_who_is_gone_leaves_no_program_behind(tmp_path: Path) -> None:
    with open(tmp_path / "log", "wb") as output:
        command = program(tmp_path, "while True: pass")
        fork = forks.Fork("root", command, env={}, stdout=output)
    pid = fork.pid
    assert fork.poll() is None and alive(pid) and pid != os.getpid()
    del fork
    end = time.monotonic() + 30
    while alive(pid):
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("import sys; print(sys.argv[1:], flush=True); sys.exit(3)", 3, "['-x', 'word']\n"),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
        ("import os; os.kill(os.getpid(), 15)", -15, ""),
        (
            "import os; print(os.environ['GIVEN'], os.getcwd() == os.environ['PWD'])",
            0,
            "yes True\n",
        ),
    ],
)
def test_a_stand_in_ends_as_its_program_does(
    tmp_path: Path, text: str, code: int, said: str
) -> None:
    command = [forks.stand_in("root"), *program(tmp_path, text)[1:], "-x", "word"]
    env = {"GIVEN": "yes", "PWD": str(tmp_path)}
    done = subprocess.run(command, env=env, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert (done.returncode, done.stdout) == (code, said)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stand_in_and_its_program_end_together(tmp_path: Path, number: int) -> None:
    text = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    command = [forks.stand_in("root"), *program(tmp_path, text)[1:]]
    process = subprocess.Popen(command, env={}, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.send_signal(number)
    assert process.wait(30) == -number
    end = time.monotonic() + 30
    while alive(pid):
        assert time.monotonic() < end
        time.sleep(0.01)
    process.stdout.close()
