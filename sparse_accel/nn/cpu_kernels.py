"""Masks, fake quantization, dropout and attention's weights on a CPU, in one pass over the memory each.

They are functions of this package's compiled library. Where it is missing, PyTorch's operations compute the same masks
and integers, bit for bit, in several passes; dropout has other random numbers then.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparse_accel.native import INT32, INT64, POINTER, LibraryMissing, instruction_sets, library_path, load_functions

# Key, numbers of 65,536 that are dropped, factor of the others; threads.
_DROPOUT = [ctypes.c_uint64, INT32, ctypes.c_float, POINTER, INT32]
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "fake_quantize": (
        INT32,
        # Instruction set; x, mask, gradient, y, which are bfloat16, n; scale, zero point, integers; extremes; threads:
        # csrc/training.cpp.
        [ctypes.c_char_p, *[POINTER] * 4, INT32, INT64, ctypes.c_float, *[INT32] * 3, *[POINTER] * 3, INT32],
    ),
    "dropout": (
        INT32,
        # Instruction set; x, y, which are bfloat16, n.
        [ctypes.c_char_p, *[POINTER] * 2, INT32, INT64, *_DROPOUT],
    ),
    "attention_weights": (
        INT32,
        # Instruction set; scores, mask, weights, dropped weights, which are bfloat16; rows, columns, heads, queries,
        # strides; scale, and as for dropout.
        [ctypes.c_char_p, *[POINTER] * 4, INT32, *[INT64] * 4, POINTER, ctypes.c_float, *_DROPOUT],
    ),
    "attention_gradient": (
        INT32,
        # Instruction set; weights, gradient, which are bfloat16; rows, columns; scale, and as for dropout.
        [ctypes.c_char_p, *[POINTER] * 2, INT32, *[INT64] * 2, ctypes.c_float, *_DROPOUT],
    ),
}

FLOATS = (torch.float32, torch.bfloat16)
MOST_KEYS = 8192  # of attention, as in csrc/kernels.h


@dataclass(frozen=True)
class Grid:
    """What a tensor is rounded to, one scale for all of it: numbers, which a later step does not change.

    Attributes:
        scale: a float32.
        zero_point: one of the integers.
        lowest, highest: the integers.
    """

    scale: float
    zero_point: int
    lowest: int
    highest: int


class Kernel:
    """The compiled functions for this CPU.

    Args:
        functions: of the library, by name.
        instruction_set: one that this CPU has.
    """

    def __init__(self, functions: Mapping[str, Any], instruction_set: str) -> None:
        self._functions, self._instruction_set = functions, instruction_set.encode()
        # PyTorch's own threads: others beside them would compete for the cores.
        loaded = ctypes.CDLL(None)
        self._parallel = ctypes.cast(loaded.GOMP_parallel, POINTER) if hasattr(loaded, "GOMP_parallel") else None

    def __call__(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        gradient: Tensor | None = None,
        grid: Grid | None = None,
        seen: tuple[Tensor, Tensor] | None = None,
        out: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Returns `x` masked and rounded, or the gradient of `x`. Everything is computed in float32.

        Args:
            x: float32 or bfloat16, contiguous.
            mask: bool, contiguous, of the shape of `x`; None: nothing is masked.
            gradient: float32 or bfloat16, contiguous, of the result; the gradient of `x` is returned instead.
            grid: what to round to; None: it is only masked.
            seen: float32, (1,) each: lowered and raised to the extremes of the masked `x`.
            out: where to write the result, which may be `x` or `gradient`; None: a new tensor.
            dtype: of a new tensor: float32 or bfloat16; None: that of `x`.

        Raises:
            ValueError: a tensor is not as said: the function reads memory by address.
        """
        out = torch.empty_like(x, dtype=dtype) if out is None else out
        floats = [x, out] if gradient is None else [x, gradient, out]
        others = [] if mask is None else [mask]
        if any(each.dtype not in FLOATS for each in floats) or any(each.dtype != torch.bool for each in others):
            raise ValueError("tensors must be float32 or bfloat16, masks bool")
        if any(each.shape != x.shape or not each.is_contiguous() for each in [*floats, *others]):
            raise ValueError("tensors must be contiguous and of one shape")
        self._call(
            "fake_quantize",
            x.data_ptr(),
            None if mask is None else mask.data_ptr(),
            None if gradient is None else gradient.data_ptr(),
            out.data_ptr(),
            _bfloat16_bits(x, gradient, out),
            x.numel(),
            *((0.0, 0, 0, 0) if grid is None else (grid.scale, grid.zero_point, grid.lowest, grid.highest)),
            *((None, None) if seen is None else (seen[0].data_ptr(), seen[1].data_ptr())),
        )
        return out

    def dropout(self, x: Tensor, p: float, key: int) -> Tensor:
        """Returns a new tensor with `x` divided by what remains, or 0 with the probability `p`, rounded to 1/65,536.

        Args:
            x: float32 or bfloat16, contiguous.
            p: 0 to less than 1.
            key: less than 2**64; it and a number's position determine whether the number stays.

        Raises:
            ValueError: `x` or `p` is not as said.
        """
        _check_rows(x)
        out = torch.empty_like(x)
        bits = _bfloat16_bits(x, None, out)
        self._call("dropout", x.data_ptr(), out.data_ptr(), bits, x.numel(), *self._dropped(p, key))
        return out

    def attention_weights(
        self, scores: Tensor, mask: Tensor | None, scale: float, p: float, key: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Returns the softmax of `scores` times `scale` plus `mask`, and the `dropout` of it, computed in float32;
        a row of which all is -inf becomes 0.

        Args:
            scores: (texts, heads, queries, keys), float32 or bfloat16, contiguous; at most MOST_KEYS keys.
            mask: float32, of that shape, expanded or not; contiguous in keys.
            p, key: as for `dropout`.
            dtype: of the results: float32 or bfloat16.

        Raises:
            ValueError: a tensor or `p` is not as said.
        """
        _check_rows(scores)
        _, heads, queries, keys = scores.shape
        strides = None
        if mask is not None:
            if mask.shape != scores.shape or mask.dtype != torch.float32 or mask.stride(-1) != 1 < keys:
                raise ValueError("the mask must be float32, of the scores' shape, and contiguous in its last dimension")
            strides = (ctypes.c_int64 * 3)(*mask.stride()[:3])
        weights, dropped = (torch.empty_like(scores, dtype=dtype) for _ in range(2))
        self._call(
            "attention_weights",
            scores.data_ptr(),
            None if mask is None else mask.data_ptr(),
            weights.data_ptr(),
            dropped.data_ptr(),
            _bfloat16_bits(scores, None, weights),
            scores.numel() // keys,
            *(keys, heads, queries),
            strides,
            scale,
            *self._dropped(p, key),
        )
        return weights, dropped

    def attention_gradient(self, weights: Tensor, gradient: Tensor, scale: float, p: float, key: int) -> None:
        """Makes the gradient of the dropped weights that of the scores, in place; see `attention_weights`.

        Args:
            weights, gradient: (..., keys), float32 or bfloat16, contiguous.

        Raises:
            ValueError: a tensor or `p` is not as said.
        """
        _check_rows(weights)
        _check_rows(gradient)
        if weights.shape != gradient.shape:
            raise ValueError("weights and gradient must have one shape")
        keys = weights.shape[-1]
        bits = _bfloat16_bits(weights, None, gradient)
        tensors = weights.data_ptr(), gradient.data_ptr(), bits, weights.numel() // keys, keys
        self._call("attention_gradient", *tensors, scale, *self._dropped(p, key))

    def _dropped(self, p: float, key: int) -> tuple[int, int, float]:
        dropped = round(p * 2**16)
        if not 0 <= dropped < 2**16:
            raise ValueError("p must be from 0 to less than 1")
        return key, dropped, 2**16 / (2**16 - dropped)

    def _call(self, function: str, *arguments: Any) -> None:
        threads = self._parallel, torch.get_num_threads()
        failed = self._functions[function](self._instruction_set, *arguments, *threads)
        if failed:
            missing = f"this CPU has no {self._instruction_set.decode()}"
            raise ValueError(f"more than {MOST_KEYS} keys" if failed == 2 else missing)


def _check_rows(x: Tensor) -> None:
    if x.dtype not in FLOATS or not x.is_contiguous():
        raise ValueError("tensors must be float32 or bfloat16 and contiguous")


def is_plain(x: Tensor, dtypes: tuple[torch.dtype, ...] = FLOATS) -> bool:
    """Returns whether a tensor has one of these dtypes, and its memory, at its strides, is what it contains."""
    if x.dtype not in dtypes or type(x) not in (Tensor, torch.nn.Parameter) or x.layout != torch.strided:
        return False
    transformed = torch._C._functorch  # torch.func.grad and others; gradients of a batch
    if transformed.is_functorch_wrapped_tensor(x) or transformed.is_legacy_batchedtensor(x):
        return False
    return not (x.is_neg() or x._is_zerotensor() or x.is_inference())


def _bfloat16_bits(*tensors: Tensor | None) -> int:
    """Returns which of these are bfloat16, as a number with their bits."""
    return sum(1 << bit for bit, tensor in enumerate(tensors) if tensor is not None and tensor.dtype == torch.bfloat16)


@functools.cache
def kernel() -> Kernel | None:
    """Returns the compiled functions; None where the library is missing, or has nothing faster for this CPU."""
    try:
        functions = load_functions(library_path(), _SIGNATURES)
    except LibraryMissing:
        return None
    best = instruction_sets(functions)[0]
    return None if best == "portable" else Kernel(functions, best)


# --- masks ------------------------------------------------------------------------------------------------------------


def mask_bits(mask: Tensor) -> Tensor:
    """Returns a mask in the form that is fastest on this CPU: contiguous, bool; without the compiled function, int32
    with all bits set where the mask is True, none where it is False."""
    return mask.contiguous() if kernel() else mask.to(torch.int32).neg_()


class MaskedOnCpu(torch.autograd.Function):
    """Sets masked numbers to 0, in the forward and in the backward.

    Args of `apply`:
        bits: what `mask_bits` returns.
        used_once: the result is used once, in an operation that makes a new gradient for it, as products and
            convolutions do: the backward may change that in place, and writes nothing where nothing is cached yet.
        dtype: of the result, float32 or bfloat16; the gradient of the weight is float32.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bits: Tensor, used_once: bool = False, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        ctx.save_for_backward(bits)
        ctx.used_once = used_once
        return masked_on_cpu(weight.contiguous(), bits, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (bits,) = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        if not ctx.used_once or gradient.dtype != torch.float32:
            return masked_on_cpu(gradient, bits), None, None, None
        clear_on_cpu(gradient, bits)
        return gradient, None, None, None


def masked_on_cpu(x: Tensor, bits: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns a new tensor with 0 where the mask of `bits` is False, without a gradient.

    Args:
        x: float32 or bfloat16, contiguous.
        bits: see `mask_bits`.
        dtype: of the result.
    """
    fast = kernel() if bits.dtype == torch.bool else None
    if fast:
        return fast(x, mask=bits, dtype=dtype)
    return (x.float().view(torch.int32) & bits).view(torch.float32).to(dtype)


def product_dtype(x: Tensor) -> torch.dtype:
    """Returns the dtype in which a Linear or a convolution uses its weight or its input: bfloat16 under an autocast of
    the CPU to it, which converts float32. What makes the tensor can write that at once, the same bits."""
    if x.dtype != torch.float32 or x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return x.dtype
    return torch.bfloat16 if torch.get_autocast_dtype("cpu") == torch.bfloat16 else x.dtype


def clear_on_cpu(tensor: Tensor, bits: Tensor) -> None:
    """Sets a float32 tensor to 0 in place where the mask of `bits` is False."""
    if bits.dtype != torch.bool:
        tensor.view(torch.int32).bitwise_and_(bits)
    elif (fast := kernel()) and tensor.is_contiguous():
        fast(tensor, mask=bits, out=tensor)
    else:
        tensor.masked_fill_(~bits, 0.0)


# --- fake quantization ------------------------------------------------------------------------------------------------


def fake_quantize_on_cpu(
    x: Tensor,
    grid: Grid,
    bits: Tensor | None = None,
    seen: tuple[Tensor, Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Returns torch.fake_quantize_per_tensor_affine of the masked `x` in float32, the same bits; PyTorch's kernel
    processes single numbers, and takes five times as long. A GPU has no such difference.

    Args:
        x: any float.
        grid: what to round to.
        bits: see `mask_bits`, bool; only with `kernel()`, and if the result is used once, as for `MaskedOnCpu`.
        seen: see `Kernel`; only with `kernel()`.
        dtype: of the result.
    """
    fast = kernel()
    if not fast:
        return _FakeQuantizeInPasses.apply(x.float(), grid).to(dtype)
    if x.dtype in FLOATS and dtype in FLOATS:
        return _FakeQuantizeCompiled.apply(x, grid, bits, seen, dtype, fast)
    return _FakeQuantizeCompiled.apply(x.float(), grid, bits, seen, torch.float32, fast).to(dtype)


class _FakeQuantizeCompiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        grid: Grid,
        bits: Tensor | None,
        seen: tuple[Tensor, Tensor] | None,
        dtype: torch.dtype,
        fast: Kernel,
    ) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, bits)
        ctx.grid, ctx.fast = grid, fast
        return fast(x, mask=bits, grid=grid, seen=seen, dtype=dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, bits = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        out = gradient if bits is not None and gradient.dtype == x.dtype else None
        return ctx.fast(x, mask=bits, gradient=gradient, grid=ctx.grid, out=out), *[None] * 5


class _FakeQuantizeInPasses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Grid) -> Tensor:
        scale, zero = torch.full((1,), grid.scale), grid.zero_point  # a quotient of float32 numbers
        rounded = (x * (1.0 / scale)).round_()
        ctx.save_for_backward(rounded)
        ctx.outside = (grid.lowest - zero - 1, grid.highest - zero + 1)
        return rounded.clamp(grid.lowest - zero, grid.highest - zero).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (rounded,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradients[0], rounded, *ctx.outside), None
