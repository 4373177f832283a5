"""Stands for the interpreter where a program shall be a fork: `stand_in.py SOCKET [-u] [-m MODULE | FILE] ARGUMENTS…`.

It asks the zygote behind the socket for the program, and shares its fate: it ends as the program does, hands signals
on, and when it is killed the zygote kills the program. It imports next to nothing: that is what it is for.
"""

import json
import os
import signal
import socket
import sys


def main() -> None:
    argv = sys.argv[3:] if sys.argv[2] == "-u" else sys.argv[2:]
    zygote = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    zygote.connect(sys.argv[1])
    job = {"argv": argv, "cwd": os.getcwd(), "env": dict(os.environ)}
    socket.send_fds(zygote, [json.dumps(job).encode()], [1, 2])
    pid = json.loads(zygote.recv(4096))["pid"]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: os.kill(pid, number))
    code = json.loads(zygote.recv(4096))["code"]
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


main()
