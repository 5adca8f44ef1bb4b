"""Children end with their parent, and their own children with them, whatever they are doing."""

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest

from tests.server.waiting import wait_until

PARENT = """
import os, subprocess, sys, time

theirs, ours = os.pipe()
subprocess.Popen([sys.executable, "-c", sys.argv[1], str(theirs)], pass_fds=[theirs], start_new_session=True)
os.close(theirs)
time.sleep(600)
"""
CHILD = """
import ctypes, json, os, signal, subprocess, sys, time
from torchport.child_process import end_with_parent

end_with_parent(int(sys.argv[1]))
own = subprocess.Popen(["sleep", "600"])
print(json.dumps([os.getpid(), own.pid]), flush=True)
{busy}
"""
BUSY = {
    "sleeping": "time.sleep(600)",
    "holding the interpreter's lock": "ctypes.PyDLL(None).sleep(600)",
    "stopped": "os.kill(os.getpid(), signal.SIGSTOP)",
}


@pytest.mark.parametrize("busy", BUSY)
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere by a thread, which must be able to run")
def test_a_child_and_its_children_end_with_a_parent_that_is_killed(busy):
    command = [sys.executable, "-c", PARENT, CHILD.format(busy=BUSY[busy])]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        family = [psutil.Process(pid) for pid in json.loads(parent.stdout.readline())]
        if busy == "stopped":
            wait_until(lambda: family[0].status() == psutil.STATUS_STOPPED)
        parent.kill()
        left = psutil.wait_procs(family, timeout=30)[1]
        for process in left:
            os.kill(process.pid, signal.SIGKILL)
    assert left == []
