"""Python programs in a process of their own, for what may hang, abort or end the process."""

import os
import signal
import subprocess
import sys
import time

BEGIN = """
import faulthandler, os, signal, sys, threading, time
faulthandler.dump_traceback_later(100, exit=True)
import torch
import noprop_kernels as nk
from noprop_kernels.backends.cpu import backend as cpu, extension
extension.threads = lambda: 2

def make(hidden=128, T=4, **options):
    options = {"optimizer": nk.AdamW(), "backend": "cpu", **options}
    goal = nk.DT(nk.NoiseSchedule.cosine(T=T))
    return nk.DenoisingBlocks(nk.plans.mlp(20, 3, 3, hidden=hidden), goal, **options)

X, Y = torch.randn(64, 20), torch.arange(64) % 3

def long_call(blocks, steps=50_000):  # unless something ends it
    blocks.train_steps(X, Y, torch.arange(64).expand(steps, 64).contiguous())

def handle(handler, after=0.3):
    def once(*_):
        signal.setitimer(signal.ITIMER_REAL, 0)
        handler()
    signal.signal(signal.SIGALRM, once)
    signal.setitimer(signal.ITIMER_REAL, after, 1)  # again, should Python's own code be interrupted

class Done(Exception): pass
"""


def run(text: str, timeout: float = 120) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BEGIN + text],
        capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


def interrupted(text: str, timeout: float = 60) -> tuple[int, str]:
    """Its status and errors after Ctrl-C, sent half a second after it printed "ready"."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", BEGIN + text],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            time.sleep(0.5)
            os.kill(process.pid, signal.SIGINT)
            _, errors = process.communicate(timeout=timeout)
        finally:
            process.kill()
    return process.returncode, errors
