"""Make a recording cheaper: the same function up to float32 rounding, in fewer and faster calls.

At batch 1 a small net spends as long on being called as on computing, so every call that goes counts.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx

from flowpolicy.inference.trace import Recording, aten, shape_of, with_shape, writes

_nn: Any = vars(torch._C)["_nn"]  # torch.nn.functional's own functions, without their Python
# The same operations as plain functions and methods: torch.ops takes 2 to 4 us more per call.
_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    aten.add.Tensor: torch.add,
    aten.sub.Tensor: torch.sub,
    aten.mul.Tensor: torch.mul,
    aten.div.Tensor: torch.div,
    aten.addcmul.default: torch.addcmul,
    aten.addmm.default: torch.addmm,
    aten.mm.default: torch.mm,
    aten.bmm.default: torch.bmm,
    aten.cat.default: torch.cat,
    aten.clamp.default: torch.clamp,
    aten.clamp.Tensor: torch.clamp,
    aten.convolution.default: torch.convolution,
    aten.native_layer_norm.default: torch.native_layer_norm,
    aten.native_group_norm.default: torch.native_group_norm,
    aten.index_select.default: torch.index_select,
    aten.relu.default: torch.relu,
    aten.relu_.default: torch.relu_,
    aten.silu.default: _nn.silu,
    aten.mish.default: _nn.mish,
    aten.gelu.default: _nn.gelu,
    aten.amax.default: torch.amax,
    aten.cumsum.default: torch.cumsum,
    aten.t.default: torch.t,
    aten.squeeze.dim: torch.squeeze,
    aten.unsqueeze.default: torch.unsqueeze,
    aten.transpose.int: torch.transpose,
    aten.permute.default: torch.permute,
    aten.select.int: torch.select,
    aten.split.Tensor: torch.split,
}
_METHODS = {aten.view.default: "view", aten._unsafe_view.default: "view", aten.expand.default: "expand"}
_ENTRYWISE = {aten.mish.default, aten.silu.default, aten.relu.default, aten.gelu.default, aten.tanh.default}

Rewrite = Callable[[Recording, fx.Node], fx.Node | None]
"""What stands in for a node, built in front of it; None leaves the node."""


def simplify(recording: Recording, *, pixels_first: bool = False) -> None:
    """Rewrite in place.

    Args:
        recording: What to make faster.
        pixels_first: One-dimensional convolutions as two-dimensional ones whose channels lie side by side in memory,
            for which oneDNN is two to four times faster at 4 to 16 positions of 128 to 768 channels.
    """
    graph = recording.graph
    if pixels_first:
        _apply(recording, _convolve_pixels_first)
    for rewrite in (
        _leave_out,
        _flatten_cat,
        _entrywise_into_cat,
        _fold_constant_columns,
        _chain_products,
        _undo_difference,
        _one_affine,
    ):
        _apply(recording, rewrite)
    for node in graph.nodes:
        if node.op == "call_function" and node.target in _METHODS:
            node.op, node.target = "call_method", _METHODS[node.target]
        elif node.op == "call_function":
            node.target = _FUNCTIONS.get(node.target, node.target)


def _apply(recording: Recording, rewrite: Rewrite) -> None:
    """One pass over the operations, then what nobody needs any more goes and what is there twice is shared."""
    graph = recording.graph
    for node in list(graph.nodes):
        if node.op == "call_function" and "shape" in node.meta:
            with graph.inserting_before(node):
                new = rewrite(recording, node)
            if new is not None:
                node.replace_all_uses_with(new)
                graph.erase_node(node)
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output") or writes(node))
    seen: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op not in ("call_function", "get_attr") or writes(node) or any(writes(user) for user in node.users):
            continue
        key = (node.op, node.target, repr(node.args), repr(node.kwargs))
        if key in seen:
            node.replace_all_uses_with(seen[key])
            graph.erase_node(node)
        else:
            seen[key] = node


def _args(node: fx.Node) -> tuple[Any, ...]:
    return node.args


def _call(recording: Recording, target: Any, *args: Any, shape: Sequence[int]) -> fx.Node:
    return with_shape(recording.graph.call_function(target, args), shape)


def _leave_out(recording: Recording, node: fx.Node) -> fx.Node | None:
    """Operations that change nothing: copies of names, views of the same shape, whole slices, times and over one."""
    source = _args(node)[0]
    if not isinstance(source, fx.Node) or "shape" not in source.meta or shape_of(source) != shape_of(node):
        return None
    if node.target in (aten.alias.default, aten.detach.default, aten.view.default, aten.slice.Tensor):
        return source
    if node.target in (aten.mul.Tensor, aten.div.Tensor):
        factor = _args(node)[1] if isinstance(_args(node)[1], int | float) else recording.value(_args(node)[1])
        is_one = bool((factor == 1).all()) if isinstance(factor, Tensor) else factor == 1
        return source if is_one and source.meta.get("dtype") == node.meta.get("dtype") else None  # 1.0 makes floats
    return None


def _flatten_cat(recording: Recording, node: fx.Node) -> fx.Node | None:
    """cat([a, cat([b, c])]) -> cat([a, b, c]), along the last axis."""
    parts = _cat_parts(node)
    if parts is None or all(_cat_parts(part) is None for part in parts):
        return None
    flat = [inner for part in parts for inner in _cat_parts(part) or [part]]
    return _call(recording, aten.cat.default, flat, -1, shape=shape_of(node))


def _entrywise_into_cat(recording: Recording, node: fx.Node) -> fx.Node | None:
    """f(cat([constant, b])) -> cat([constant, f(b)])."""
    parts = _cat_parts(_args(node)[0]) if node.target in _ENTRYWISE else None
    if parts is None or all(recording.value(part) is None for part in parts):
        return None
    done, apply = [], cast(Callable[..., Tensor], node.target)
    for part in parts:
        value = recording.value(part)
        if value is None:
            done.append(_call(recording, node.target, part, *_args(node)[1:], shape=shape_of(part)))
        else:
            done.append(recording.constant(apply(value, *_args(node)[1:])))
    return _call(recording, aten.cat.default, done, -1, shape=shape_of(node))


def _fold_constant_columns(recording: Recording, node: fx.Node) -> fx.Node | None:
    """bias + cat([constant, b]) W -> (bias + constant W1) + b W2: the embedded flow time becomes part of the bias."""
    bias, rows, weight = _product(recording, node)
    parts = _cat_parts(rows)
    if weight is None or parts is None or all(recording.value(part) is None for part in parts):
        return None
    total = weight.new_zeros(weight.shape[1], dtype=torch.float64) if bias is None else bias.double()
    kept, kept_weights, start = [], [], 0
    for part in parts:
        stop = start + shape_of(part)[-1]
        value = recording.value(part)
        if value is None:
            kept.append(part)
            kept_weights.append(weight[start:stop])
        else:
            total = total + value.double() @ weight[start:stop].double()
        start = stop
    if not kept:
        return None
    left = torch.cat(kept_weights).t().contiguous().t()  # as `Linear` lays it out
    x = (
        kept[0]
        if len(kept) == 1
        else _call(recording, aten.cat.default, kept, -1, shape=(*shape_of(node)[:1], len(left)))
    )
    return _call(
        recording,
        aten.addmm.default,
        recording.constant(total.to(weight.dtype)),
        x,
        recording.constant(left),
        shape=shape_of(node),
    )


def _chain_products(recording: Recording, node: fx.Node) -> fx.Node | None:
    """(bias + a W) + (bias' + b V) -> ((bias + bias') + b V) + a W, one call less."""
    if node.target is not aten.add.Tensor or node.kwargs:
        return None
    first, second = _args(node)
    if not (isinstance(first, fx.Node) and isinstance(second, fx.Node)) or max(len(first.users), len(second.users)) > 1:
        return None
    (bias, a, w), (other, b, v) = _product(recording, first), _product(recording, second)
    if w is None or v is None or bias is None and other is None:
        return None
    total = bias if other is None else other if bias is None else bias + other
    assert total is not None
    inner = _call(
        recording, aten.addmm.default, recording.constant(total), b, recording.constant(v), shape=shape_of(node)
    )
    return _call(recording, aten.addmm.default, inner, a, recording.constant(w), shape=shape_of(node))


def _undo_difference(recording: Recording, node: fx.Node) -> fx.Node | None:
    """x - (x - y) -> y: what one step of an action-predicting head from t = 1 to 0 comes down to."""
    del recording
    if node.target is not aten.sub.Tensor or node.kwargs or not isinstance(_args(node)[1], fx.Node):
        return None
    x, inner = _args(node)
    if inner.target is not aten.sub.Tensor or inner.kwargs or inner.args[0] is not x:
        return None
    y = inner.args[1]
    if not isinstance(y, fx.Node) or shape_of(y) != shape_of(node) or any(writes(user) for user in y.users):
        return None
    return y


def _one_affine(recording: Recording, node: fx.Node) -> fx.Node | None:
    """(x - offset) / scale -> x * (1 / scale) - offset / scale, as one call."""
    inner = _args(node)[0] if node.args else None
    if node.target is not aten.div.Tensor or not isinstance(inner, fx.Node) or inner.target is not aten.sub.Tensor:
        return None
    offset, scale = recording.value(inner.args[1]), recording.value(node.args[1])
    if offset is None or scale is None or inner.kwargs or node.kwargs:
        return None
    shift = (-offset.double() / scale.double()).to(scale.dtype)
    factor = (1.0 / scale.double()).to(scale.dtype)
    return _call(
        recording,
        aten.addcmul.default,
        recording.constant(shift),
        inner.args[0],
        recording.constant(factor),
        shape=shape_of(node),
    )


def _convolve_pixels_first(recording: Recording, node: fx.Node) -> fx.Node | None:
    """A convolution (B, C, L) as one of pictures (B, C, 1, L) whose pixels hold their channels side by side."""
    if node.target is not aten.convolution.default:
        return None
    x, weight, bias, stride, padding, dilation, transposed, extra, groups = _args(node)
    value = recording.value(weight)
    if value is None or value.dim() != 3 or not isinstance(x, fx.Node):
        return None
    batch, channels, length = shape_of(node)
    picture = _call(recording, aten.unsqueeze.default, x, 2, shape=(*shape_of(x)[:2], 1, *shape_of(x)[2:]))
    kernel = recording.constant(value.unsqueeze(2).clone(memory_format=torch.channels_last))
    settings = ([1, *stride], [0, *padding], [1, *dilation], transposed, [0, *extra], groups)
    convolved = _call(
        recording, aten.convolution.default, picture, kernel, bias, *settings, shape=(batch, channels, 1, length)
    )
    squeezed = _call(recording, aten.squeeze.dim, convolved, 2, shape=shape_of(node))
    return with_shape(recording.graph.call_method("contiguous", (squeezed,)), shape_of(node))  # as group norm wants it


def _cat_parts(node: object) -> list[fx.Node] | None:
    """The parts of a cat along the last axis; None for anything else, and where a part is written over later."""
    if not isinstance(node, fx.Node) or node.target is not aten.cat.default or len(node.args) != 2:
        return None
    parts, dim = _args(node)
    last = dim in (-1, len(shape_of(node)) - 1)
    return list(parts) if last and not any(writes(user) for part in parts for user in part.users) else None


def _product(recording: Recording, node: fx.Node) -> tuple[Tensor | None, Any, Tensor | None]:
    """(bias, x, W) of bias + x W with constant bias and W, bias None where there is none; W None for anything else."""
    if node.target is aten.mm.default:
        return None, _args(node)[0], recording.value(_args(node)[1])
    if node.target is aten.addmm.default and not node.kwargs and (bias := recording.value(node.args[0])) is not None:
        return bias, _args(node)[1], recording.value(_args(node)[2])
    return None, None, None
