"""An OpenMP runtime in place of PyTorch's, whose threads come when a test wants them."""

import ctypes
import threading
import time

RUN = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
PARALLEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
NUM_THREADS, PAUSE = ctypes.CFUNCTYPE(ctypes.c_int), ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)


class Runtime:
    """An OpenMP runtime that counts its regions and pauses; the calling thread does all the work.

    Attributes:
        granted: the threads of a region, whatever is asked for.
        late: whether the other thread of a region comes, after 10 ms.
    """

    def __init__(self) -> None:
        self.granted, self.late, self.regions, self.pauses = 2, False, 0, 0
        self.functions = (
            PARALLEL(self.parallel), NUM_THREADS(lambda: self.granted), PAUSE(self.pause)
        )  # fmt: skip

    def parallel(self, run: int, data: int, threads: int, flags: int) -> None:
        assert threads == 2 and flags == 0
        self.regions += 1
        RUN(run)(data)
        if self.late:
            time.sleep(0.01)
            other = threading.Thread(target=RUN(run), args=(data,))
            other.start()
            other.join()

    def pause(self, kind: int) -> int:
        self.pauses += 1
        return 0
