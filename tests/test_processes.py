"""No process outlives the one it works for."""

import subprocess
import sys

import psutil
import pytest

from tests.helpers import until

PARENT = """
import subprocess, sys, threading, time
from shd_bids.processes import end_after
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
end_after(sys.stdin.read)
time.sleep(60)
"""


def test_the_end_of_what_is_waited_for_ends_the_process_and_all_below_it():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        child = psutil.Process(int(process.stdout.readline()))
        assert process.poll() is None and child.is_running()
        process.stdin.close()
        assert process.wait(10) == 1
        until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, seconds=10)


def test_a_child_is_killed_with_its_parent():
    code = """
import subprocess, sys, time
from shd_bids.processes import die_with_parent
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], preexec_fn=die_with_parent)
print(child.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        child = psutil.Process(int(process.stdout.readline()))
        process.kill()
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, seconds=10)


@pytest.mark.slow
def test_the_peak_of_a_process_is_not_that_of_the_one_that_started_it():
    code = """
import subprocess, sys
ballast = bytearray(400 << 20)
child = "from shd_bids.processes import peak_memory_mb; print(peak_memory_mb())"
print(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True).stdout)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 5 < int(result.stdout) < 300
