"""The check of a GPU, in parts, under ten minutes: `bash bench/gpu_check.sh OUT [PART ...]`.

Each part is a command with a time limit; its result is a line of OUT/parts.jsonl as soon as it is
known, and its output is appended to OUT/log.txt. A part that fails stops none of the next. A part
without time left is reported as "cut", one that cannot run here as "skipped", each with its reason.
Exit status 1 if a part failed.

    NOPROP_REHEARSE=1  runs the same code path on the CPU, with shapes that measure nothing
    NOPROP_SECONDS     the time for everything, 570 unless given
    NOPROP_DATA        MNIST's files, for the last part
    NOPROP_COMMIT      the commit's name in the result lines, where the sources have no .git

This file and parts.py need nothing but Python, since the package is not built when they start.
It is built from a copy of the sources, and installed into a folder that is removed in the end.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .parts import ROOT, Part, Place, every_part

SECONDS = 570.0
SKIPPED = 77  # exit status of a part that cannot run here; its last line says why
Line = dict[str, object]


def run_part(part: Part, place: Place, left: float, echo: Callable[[str], None]) -> Line:
    """Runs a part within its limit and the time left; returns its result line."""
    line: Line = {"part": part.name, "limit_s": part.seconds}
    if part.gap:
        return line | {"status": "skipped", "reason": part.gap}
    limit = min(part.seconds, left)
    if limit < min(5, part.seconds):
        return line | {"status": "cut", "reason": f"{max(left, 0):.0f} s were left"}
    begin = time.perf_counter()
    status, output = output_of(part, place, limit)
    seconds = time.perf_counter() - begin
    for text in output.splitlines():
        echo(text)
    said = output.strip().splitlines()
    line |= {"seconds": round(seconds, 3), "rc": status}
    if status == 0:
        if part.keep:
            with (place.out / part.keep).open("a") as file:
                file.write(said[-1] + "\n")
        return line | {"status": "passed"}
    if status == SKIPPED:
        return line | {"status": "skipped", "reason": said[-1] if said else ""}
    if status is None:
        reason = f"not done in {limit:.0f} s; results until then are kept"
        # reaching the part's own limit is a failure, the end of the total time is not
        return line | {"status": "failed" if limit == part.seconds else "cut", "reason": reason}
    return line | {"status": "failed", "reason": "\n".join(said[-3:])[-500:]}


def output_of(part: Part, place: Place, limit: float) -> tuple[int | None, str]:
    """Exit status, None after the limit, and everything printed."""
    path = [str(place.site), *filter(None, [os.environ.get("PYTHONPATH", "")])]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
    env |= {"NOPROP_COMMIT": place.commit}
    if place.rehearse:
        env |= {"TRITON_INTERPRET": "1"}
    env |= part.env
    with tempfile.TemporaryFile("w+") as file:
        try:
            process = subprocess.Popen(
                part.command,
                cwd=place.checks,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return 127, str(error)
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            end_session(process)
        file.seek(0)
        return status, file.read()


def end_session(process: subprocess.Popen) -> None:
    """Ends a part and its children, such as a compiler's workers."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def commit() -> str:
    """NOPROP_COMMIT, or git's name for the sources, with "-dirty" if files differ from it."""
    if given := os.environ.get("NOPROP_COMMIT"):
        return given
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return ""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def check(parts: Sequence[Part], place: Place, seconds: float) -> int:
    """Runs the parts in order; 1 if one failed."""
    end, failed = time.perf_counter() + seconds, False
    with (place.out / "parts.jsonl").open("a") as results, (place.out / "log.txt").open("a") as log:

        def echo(text: str) -> None:
            log.write(text + "\n")
            print(text, flush=True)

        for part in parts:
            echo(f"\n== {part.name}")
            line = run_part(part, place, end - time.perf_counter(), echo)
            line |= {"rehearsal": True} if place.rehearse else {}
            failed = failed or line["status"] == "failed"
            echo(f"== {part.name}: {line['status']} {line.get('reason', '')}".rstrip())
            results.write(json.dumps(line) + "\n")
            results.flush()
            log.flush()
    return int(failed)


def main(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        print(__doc__)
        return 0 if list(arguments) in (["-h"], ["--help"]) else 2
    # so that a part does not outlive the check
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    out, wanted = Path(arguments[0]).resolve(), arguments[1:]
    out.mkdir(parents=True, exist_ok=True)
    seconds = float(os.environ.get("NOPROP_SECONDS") or SECONDS)
    rehearse = os.environ.get("NOPROP_REHEARSE", "") not in ("", "0")
    with tempfile.TemporaryDirectory(prefix="noprop-gpu-check-") as work:
        place = Place(out, Path(work), rehearse, commit())
        parts = every_part(place)
        known = [part.name for part in parts]
        if unknown := [name for name in wanted if name not in known]:
            print(f"gpu_check: PART must be among {known}, got {unknown}")
            return 2
        place.lay()
        # all but the facts import the built package
        needed = {*wanted} | ({"build"} if {*wanted} - {"facts"} else set())
        chosen = [part for part in parts if not wanted or part.name in needed]
        return check(chosen, place, seconds)
