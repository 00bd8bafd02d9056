"""The operators that a program from a file may call: those of networks that do nothing but compute.

What is not here is refused, above all what reads or writes files (``aten.from_file``, ``aten.save``), what
lies behind the checks of the public operators (``aten._native_batch_norm_legit_no_training``), what returns
memory as it is (``aten.empty``), operators of other libraries, and those that carry a program of their own.
"""

from __future__ import annotations

import re

from bntools.core.schema import Stranger, shown

_LINEAR = """
    addbmm addcdiv addcmul addmm addmv addr baddbmm bilinear bmm chain_matmul conv1d conv2d conv3d conv_tbc
    conv_transpose1d conv_transpose2d conv_transpose3d convolution dot einsum embedding ger
    inner kron linalg_matrix_norm linalg_norm linalg_vector_norm linear matmul mm mv outer
    scaled_dot_product_attention tensordot vdot one_hot
"""
_NORMS = """
    batch_norm group_norm instance_norm layer_norm rms_norm norm nuclear_norm
    cosine_similarity pairwise_distance cdist renorm dropout alpha_dropout feature_dropout
    feature_alpha_dropout
"""
_ACTIVATIONS = """
    celu elu gelu glu hardshrink hardsigmoid hardswish hardtanh leaky_relu log_sigmoid log_softmax mish prelu
    relu relu6 rrelu selu sigmoid silu softmax softplus softshrink special_expit tanh threshold
    logit
"""
_POOLS = """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool1d_with_indices max_pool2d
    max_pool2d_with_indices max_pool3d max_pool3d_with_indices constant_pad_nd pad reflection_pad1d
    reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d
    affine_grid_generator col2im grid_sampler grid_sampler_2d grid_sampler_3d im2col pixel_shuffle
    pixel_unshuffle channel_shuffle upsample_bicubic2d upsample_bilinear2d
    upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d
"""
_SHAPES = """
    alias atleast_1d atleast_2d atleast_3d block_diag broadcast_tensors broadcast_to cat chunk clone
    column_stack concat concatenate contiguous cumprod cumsum cummax cummin detach diag diag_embed diagonal
    diff dsplit dstack expand expand_as flatten flip fliplr flipud gather hsplit hstack index index_add
    index_copy index_fill index_put index_select item lift_fresh_copy masked_fill masked_scatter
    masked_select meshgrid movedim moveaxis narrow nonzero numel permute ravel repeat
    repeat_interleave reshape reshape_as roll rot90 scatter scatter_add scatter_reduce select select_scatter
    slice slice_scatter size split split_with_sizes squeeze stack stride sub subtract swapaxes swapdims t
    take take_along_dim tensor_split tile to transpose tril triu unbind unflatten unfold unsafe_chunk
    unsafe_split unsafe_split_with_sizes unsqueeze view view_as view_as_complex view_as_real vsplit vstack
    adjoint
"""
_NUMBERS = """
    abs absolute acos acosh add all allclose amax amin aminmax angle any arange argmax argmin argsort asin
    asinh atan atan2 atanh bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift
    bitwise_xor bucketize ceil clamp clamp_max clamp_min clip complex conj copysign copy cos cosh
    count_nonzero deg2rad digamma div divide eq equal erf erfc erfinv exp exp2 expm1 eye fill
    floor floor_divide fmax fmin fmod frac full full_like ge greater greater_equal gt heaviside histc hypot
    imag isclose isfinite isin isinf isnan isneginf isposinf isreal kthvalue ldexp le lerp less less_equal
    lgamma linspace log log10 log1p log2 logaddexp logaddexp2 logical_and logical_not logical_or logical_xor
    logspace logsumexp lt max maximum mean median min minimum mode mul multiply nan_to_num nanmean nansum ne
    neg negative new_full new_ones new_zeros nextafter not_equal ones ones_like positive pow prod quantile
    rad2deg real reciprocal remainder resolve_conj resolve_neg round rsqrt rsub scalar_tensor searchsorted
    sgn sign signbit sin sinc sinh sort sqrt square std std_mean sum tan topk trace trapezoid true_divide
    trunc type_as unique_dim var var_mean where xlogy zero zeros zeros_like polar special_erf
    special_exp2 special_log1p special_xlogy special_logit
"""
_CHECKS = """
    _assert_async _assert_scalar _assert_tensor_metadata sym_constrain_range sym_constrain_range_for_size
    sym_numel sym_size sym_storage_offset sym_stride is_nonzero
"""

ATEN = frozenset(" ".join([_LINEAR, _NORMS, _ACTIVATIONS, _POOLS, _SHAPES, _NUMBERS, _CHECKS]).split())
"""The names, without the underscore at the end of those that work in place."""

_SIZES = {
    "_operator": "add and_ eq floordiv ge gt le lt mod mul ne neg or_ pos sub truediv",
    "torch": "sym_float sym_int sym_ite sym_max sym_min sym_not sym_sqrt",
    "math": "trunc",
}
SIZES = frozenset(f"{module}.{name}" for module, names in _SIZES.items() for name in names.split())
"""What is computed with sizes; no powers, nor shifts: a number with more digits than memory is soon made."""

_FORM = re.compile(r"torch\.ops\.aten\.([a-z_]\w*)\.([A-Za-z_]\w*)", re.ASCII)


def _odd(overload: str) -> bool:
    """Whether it writes into memory that it is handed, or is no overload but something of Python's."""
    return overload.startswith("_") or "out" in overload.split("_")


def operator(value: object) -> str:
    """The name of an operator of the list, as torch writes it into a file.

    Example:
        >>> operator("torch.ops.aten.relu_.default")
        'torch.ops.aten.relu_.default'
        >>> operator("torch.hub.load")
        Traceback (most recent call last):
        ...
        bntools.core.schema.Stranger: the operator torch.hub.load
    """
    if isinstance(value, str):
        match = _FORM.fullmatch(value)
        known = match is not None and match[1].removesuffix("_") in ATEN and not _odd(match[2])
        if value in SIZES or known:
            return value
    raise Stranger(f"the operator {shown(value)}")
