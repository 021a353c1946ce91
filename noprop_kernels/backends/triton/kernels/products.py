"""Shared by several kernels: the start of a program, rounding and products of operands."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

CHUNK_ROWS = tl.constexpr(128)  # sums over rows are formed in such chunks, folded from the left


@triton.jit
def begin(PDL: tl.constexpr):
    """First in every kernel: allows the next launch to start early, and waits for the previous
    one."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def round_operand(x, PRECISION: tl.constexpr):
    """A product's operand: bfloat16 to nearest even, tf32 (10 bits) to nearest, ties away.

    "bfloat16_as_float32" is for Triton's interpreter, whose bfloat16 truncates and has no product.
    """
    if PRECISION == "tf32":
        bits = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
        return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)  # a NaN could overflow
    elif PRECISION == "bfloat16_as_float32":
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
        return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    elif PRECISION == "bfloat16":
        return x.to(tl.bfloat16)
    else:
        return x


@triton.jit
def multiply(a, b, total, PRECISION: tl.constexpr):
    """total + a @ b, the operands rounded once, products and sums in float32."""
    a = round_operand(a, PRECISION)
    b = round_operand(b, PRECISION)
    if PRECISION == "tf32":
        return tl.dot(a, b, total, input_precision="tf32")
    else:
        return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def per_row(source, k, i, n, B):
    """Address of the value (K, n, B) of step k, slice i and row 0; of row b: b * source[3] more.

    A source is (pointer, and 1 or 0 for each of K, n and B: whether the value differs along it).
    Strides would each compile a kernel of their own.
    """
    rows = 1 + (B - 1) * source[3]
    slices = 1 + (n - 1) * source[2]
    return source[0] + (k.to(tl.int64) * source[1] * slices + i * source[2]) * rows
