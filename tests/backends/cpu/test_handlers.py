"""Calls made by signal handlers in the middle of a call, forks there, threads at exit."""

import pytest

from support.scripts import interrupted, run

# the handler of a long call on `blocks`, and what it must have seen
HANDLERS = {
    "another object predicts": """
other = make()
want = other.predict(X, seed=1).logits
def handler():
    assert torch.equal(other.predict(X, seed=1).logits, want)
    raise Done
""",
    "another object trains, of teams": """
other, twin = make(256, T=1), make(256, T=1)
indices = torch.arange(64).expand(20, 64).contiguous()
want = twin.train_steps(X, Y, indices)
def handler():
    assert torch.equal(other.train_steps(X, Y, indices), want)
    raise Done
""",
    "a layer's backward and a loss": """
layer = nk.Linear(20, 3, optimizer=nk.AdamW())
def handler():
    with torch.enable_grad():  # what it interrupts may have turned it off
        nk.DenoisingLoss(torch.randn(3, 4))(layer(X), Y, torch.ones(64)).sum().backward()
    assert layer.updates.tolist() == [1]
    raise Done
""",
    "a destructor": """
class Last:
    def __init__(self): self.other, self.me = make(), self
    def __del__(self): assert self.other.predict(X).logits.isfinite().all()
def handler():
    import gc
    Last()
    assert gc.collect()
    raise Done
""",
    "a child that exits": """
def handler():
    child = os.fork()
    if child == 0:
        make().predict(X)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    raise Done
""",
    # last, for its thread may still be there
    "a thread that is waited for no longer than a second": """
def handler():
    thread = threading.Thread(target=lambda: make().predict(X), daemon=True)
    thread.start()
    thread.join(1)
    raise Done
""",
}


def test_handlers_in_the_middle_of_a_call() -> None:
    """One after the other, each in a call of an object of its own."""
    text = "".join(
        f"blocks = make()\n{handler}\nhandle(handler)\n"
        f"try: long_call(blocks)\nexcept Done: print({name!r}, flush=True)\n"
        "assert make().predict(X).logits.isfinite().all()\n"
        for name, handler in HANDLERS.items()
    )
    done = run(text)
    assert done.returncode == 0 and done.stdout.splitlines() == list(HANDLERS), done.stderr


# Handlers that run in the middle of a call, which then continues. The calls are repeated until two
# of them were interrupted, however fast the machine is.
GOING_ON = {
    "another object trains": """
other = make(64, T=2)
def during():
    assert (torch.tensor([1e-30]) * 1e-10).item() > 0  # numbers below 1e-38 count in the handler
    other.train_steps(X + 1, Y, indices[:50])
    return True
""",
    "its own object is refused": """
def refused(call):
    try: call()
    except RuntimeError as error: return "must not use parameters" in str(error)
def during():
    if not refused(lambda: blocks.predict(X)): return False  # between Python's lines, not in a call
    assert refused(lambda: blocks.train_step(X, Y))
    return True
""",
}


@pytest.mark.parametrize("name", GOING_ON)
def test_a_call_goes_on_after_a_handler_as_if_it_had_not_been(name: str) -> None:
    """Its rows are packed for all blocks and teams share its memory."""
    done = run(f"""
indices = torch.randint(64, (2_000, 64))
{GOING_ON[name]}
seen = 0
def handler(*_):
    global seen
    seen += during()
    signal.setitimer(signal.ITIMER_REAL, 0.05)  # not before this one ended
signal.signal(signal.SIGALRM, handler)
blocks, twin = make(64, T=2), make(64, T=2)
while seen < 2:
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    losses = blocks.train_steps(X, Y, indices)
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert torch.equal(losses, twin.train_steps(X, Y, indices))
    assert torch.equal(blocks.draws, twin.draws)
""")
    assert done.returncode == 0, done.stderr


def test_a_child_that_returns_into_the_call_ends_it() -> None:
    done = run("""
blocks = make()
def handler():
    global child
    child = os.fork()
    if child: raise Done
handle(handler)
try: long_call(blocks)
except Done: os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
except RuntimeError as error:
    assert "forked the process" in str(error)
    assert make().predict(X).logits.isfinite().all()
    os._exit(5)
""")
    assert done.returncode == 5, done.stderr


def test_handlers_that_interrupt_each_other_without_end_are_refused() -> None:
    done = run("""
objects, depth = [make() for _ in range(60)], 0
indices = torch.arange(64).expand(50_000, 64).contiguous()
def handler(*_):
    global depth
    depth += 1
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try: objects[depth].train_steps(X, Y, indices)
    finally: signal.setitimer(signal.ITIMER_REAL, 0)
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.2)
try: objects[0].train_steps(X, Y, indices)
except RuntimeError as error: assert "must not interrupt each other" in str(error), error
assert depth >= 17, depth  # Python code may be interrupted too
""")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "text",
    [
        "print('ready', flush=True); long_call(make())",
        # the main thread waits for its turn
        "threading.Thread(target=long_call, args=[make()], daemon=True).start()\n"
        "time.sleep(0.5); print('ready', flush=True); make().predict(X)",
        # a handler waits for a thread that waits for the handler's call
        "other = make()  # PyTorch's own calls abort a process that ends beside them\n"
        "def handler():\n"
        "    thread = threading.Thread(target=long_call, args=[other], daemon=True)\n"
        "    thread.start(); time.sleep(0.5); print('ready', flush=True); thread.join()\n"
        "handle(handler); long_call(make())",
        # in a handler's own long call
        "def handler(): print('ready', flush=True); long_call(make())\n"
        "handle(handler); long_call(make())",
    ],
    ids=["a call", "waiting for a thread", "a handler that waits", "a handler's call"],
)
def test_ctrl_c_answers(text: str) -> None:
    status, errors = interrupted(text)
    assert status in (1, -2, 130) and "KeyboardInterrupt" in errors, (status, errors)


@pytest.mark.parametrize("end", ["sys.exit(3)", "os._exit(3)", "raise SystemExit(3)"])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_process_ends_beside_calls_of_daemon_threads(end: str, threads: int) -> None:
    done = run(f"""
for _ in range({threads}):
    threading.Thread(target=long_call, args=[make()], daemon=True).start()
time.sleep(0.5)
{end}
""")
    assert done.returncode == 3 and done.stderr == "", (done.returncode, done.stderr)


def test_calls_of_atexit_beside_a_loop_of_calls() -> None:
    """The loop ends before the interpreter does: a daemon thread in a loop of PyTorch's own calls
    aborts the process there, without a call of ours."""
    done = run("""
import atexit
ends = False
def calls():
    blocks = make()
    while not ends: long_call(blocks, 20)
thread = threading.Thread(target=calls, daemon=True)
def at_exit():
    global ends
    make().predict(X)
    ends = True
    thread.join()
    os.write(1, b"atexit\\n")
atexit.register(at_exit)
thread.start()
time.sleep(0.5)
sys.exit(3)
""")
    assert done.returncode == 3 and done.stderr == "", (done.returncode, done.stderr)
    assert done.stdout == "atexit\n"


def test_an_error_of_the_program_keeps_its_status() -> None:
    done = run("""
threading.Thread(target=long_call, args=[make()], daemon=True).start()
time.sleep(0.5)
raise ValueError("of the program")
""")
    assert done.returncode == 1 and "ValueError: of the program" in done.stderr
    assert "terminate" not in done.stderr


def test_a_fork_beside_a_call_of_another_thread() -> None:
    done = run("""
torch.set_num_threads(1)  # OpenMP's threads are not in a child, and PyTorch would wait for them
threading.Thread(target=long_call, args=[make()], daemon=True).start()
time.sleep(0.3)
for _ in range(5):
    child = os.fork()
    if child == 0:
        ok = make(256, T=1).train_step(X, Y).loss.isfinite().all()
        os._exit(0 if ok else 1)
    assert os.waitpid(child, 0)[1] == 0
os._exit(0)
""")
    assert done.returncode == 0, done.stderr
