"""Runs a program as a service manager does that has opened its sockets: they are its descriptors
3, 4, … and the variables of sd_listen_fds(3) tell of them.

``python activate.py FD[,FD…] NAMES PROGRAM ARGUMENTS…``
"""

from __future__ import annotations

import fcntl
import os
import sys

fds = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in sys.argv[1].split(",")]
for number, fd in enumerate(fds, start=3):
    os.dup2(fd, number, inheritable=True)
    os.close(fd)
environ = {**os.environ, "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(fds))}
os.execve(sys.argv[3], sys.argv[3:], {**environ, "LISTEN_FDNAMES": sys.argv[2]})
