"""The environment variables of the library, read anew at each call, and by no other file of it."""

import os

CLUSTERS = "NOPROP_CUDA_CLUSTERS"
BACKEND = "NOPROP_BACKEND"
ENCODED_BACKEND = os.fsencode(BACKEND)


def backend() -> str | None:
    """NOPROP_BACKEND: the backend to force."""
    # of a variable that is not there os.environ raises and catches errors, for as long as a small
    # layer's call takes otherwise
    encoded = getattr(os.environ, "_data", None)
    if encoded is not None and ENCODED_BACKEND not in encoded:
        return None
    return os.environ.get(BACKEND) or None


def isa() -> str | None:
    """NOPROP_ISA: the instruction set of the CPU kernels to force."""
    return os.environ.get("NOPROP_ISA") or None


def cuda_clusters() -> bool:
    """NOPROP_CUDA_CLUSTERS: whether groups of thread blocks are launched as clusters.

    Raises:
        ValueError: the variable is neither 0 nor 1.
    """
    value = os.environ.get(CLUSTERS, "")
    if value not in ("", "0", "1"):
        raise ValueError(f"{CLUSTERS} must be 0 or 1, got {value!r}")
    return value == "1"


def interprets_triton() -> bool:
    """TRITON_INTERPRET, Triton's own variable."""
    return os.environ.get("TRITON_INTERPRET") == "1"
