"""How the loops of the CPU's step are compiled: by numba, when first called, and kept for later processes.

No licence to reorder, and none to fuse but where `fma` stands: numba optimises code that it has just compiled otherwise
than the same code from its cache, and a training must end with the same bits on a machine's first run and on its next.

Everything is split into blocks whose number depends on shapes alone, so that no bit depends on the number of threads.
What lets LLVM vectorise: one-dimensional slices (no negative index to wrap) and division as numpy does it (no branch
for zero). No flag lets the compiler assume that values are finite: NaN is to be seen.

Numba's OpenMP threads do not survive a fork: a process that has made a step may start others only by exec or spawn.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

ROWS = 16  # rows of one block
LANES = 8  # floats of one vector register; the order of sums, and so every bit, depends on it and on VECTORS
VECTORS = 4
OPTIONS = {"error_model": "numpy"}
part = njit(**OPTIONS)  # of a loop: compiled into it


@intrinsic
def fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """a b + c of three float32, rounded once (IEEE 754 fusedMultiplyAdd); half the work of both where a CPU has it."""
    del typing_context

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        return builder.fma(*arguments)

    return (types.float32(a, b, c), generate) if (a, b, c) == (types.float32,) * 3 else None


@intrinsic
def widened(typing_context: Any, value: Any) -> Any:
    """A float32 as it is, and the bits of a bf16 (uint16) as the float32 they stand for."""
    del typing_context

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context
        if signature.args[0] == types.float32:
            return arguments[0]
        bits = ir.IntType(32)
        return builder.bitcast(builder.shl(builder.zext(arguments[0], bits), bits(16)), ir.FloatType())

    return (types.float32(value), generate) if value in (types.float32, types.uint16) else None


@intrinsic
def nearest_bf16(typing_context: Any, value: Any) -> Any:
    """The bits (uint16) of the bf16 nearest to a float32 that is finite, of two the even one."""
    del typing_context

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        whole = ir.IntType(32)
        bits = builder.bitcast(arguments[0], whole)
        even = builder.and_(builder.lshr(bits, whole(16)), whole(1))
        nearest = builder.lshr(builder.add(bits, builder.add(even, whole(0x7FFF))), whole(16))
        return builder.trunc(nearest, ir.IntType(16))

    return (types.uint16(value), generate) if value == types.float32 else None


@intrinsic
def dot(typing_context: Any, a_D: Any, b_D: Any) -> Any:
    """Product of two contiguous float32 vectors: 32 sums side by side, by `fma`, then their sum in a fixed order.

    In vectors of LLVM's, because a loop whose sum may not be reordered is not vectorised: a fifth of the time.
    """
    del typing_context
    vector = types.Array(types.float32, 1, "C")
    return (types.float32(vector, vector), _generate_dot) if (a_D, b_D) == (vector, vector) else None


def _generate_dot(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    arrays = [
        context.make_array(t)(context, builder, value) for t, value in zip(signature.args, arguments, strict=True)
    ]
    size = builder.extract_value(arrays[0].shape, 0)
    zero, stride = size.type(0), size.type(LANES * VECTORS)
    whole = builder.sub(size, builder.urem(size, stride))
    lanes = ir.VectorType(ir.FloatType(), LANES)
    sums = [cgutils.alloca_once_value(builder, ir.Constant(lanes, [0.0] * LANES)) for _ in range(VECTORS)]
    rest = cgutils.alloca_once_value(builder, ir.Constant(ir.FloatType(), 0.0))

    def add(total: Any, at: Any) -> None:
        """Adds to a total the products of as many elements from `at` on as it has lanes."""
        kind = total.type.pointee
        a, b = (
            builder.load(builder.bitcast(builder.gep(array.data, [at]), kind.as_pointer()), align=4) for array in arrays
        )
        name = f"llvm.fma.v{LANES}f32" if kind is lanes else "llvm.fma.f32"
        fused = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
        builder.store(builder.call(fused, [a, b, builder.load(total)]), total)

    with cgutils.for_range_slice(builder, zero, whole, stride) as (at, _):
        for number, total in enumerate(sums):
            add(total, builder.add(at, size.type(number * LANES)))
    with cgutils.for_range_slice(builder, whole, size, size.type(1)) as (at, _):
        add(rest, at)
    first, second, third, fourth = map(builder.load, sums)
    together = builder.fadd(builder.fadd(first, second), builder.fadd(third, fourth))
    found = [builder.extract_element(together, ir.IntType(32)(lane)) for lane in range(LANES)]
    while len(found) > 1:
        found = [builder.fadd(a, b) for a, b in zip(found[::2], found[1::2], strict=True)]
    return builder.fadd(found[0], builder.load(rest))


def compiled(parallel: bool = False) -> Callable[[Any], Any]:
    """A loop that Python calls, kept on the disk."""

    def decorate(function: Any) -> Any:
        try:
            return njit(cache=True, parallel=parallel, **OPTIONS)(function)
        except RuntimeError:  # neither this folder nor the user's cache can be written: compiled in each process
            return njit(parallel=parallel, **OPTIONS)(function)

    return decorate
