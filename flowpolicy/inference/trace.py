"""Record what a function of tensors does, as a torch.fx graph in which everything that never changes is a constant.

The function runs once, on real tensors. An operation is recorded only if one of its inputs depends on the arguments:
flow times, their embeddings and transposed weights are results that the graph holds, not work that it repeats.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# They read a tensor's shape and type, not what it holds.
_SHAPE_ONLY = {
    aten.new_full.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_empty.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.empty_like.default,
}
# They hand what a tensor holds to Python, which the recording does not see.
_LEAVING = {aten._local_scalar_dense.default, aten.is_nonzero.default, aten.nonzero.default}


@final
class Recording:
    """A graph (one input per argument, in their order, and one output) and what its constants are.

    Constants are the graph's get_attr nodes; the same tensor is one constant however often it is used.
    """

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self._constants: dict[str, Tensor] = {}
        self._names: dict[int, str] = {}  # by id, which `_constants` reserves

    def constant(self, value: Tensor) -> fx.Node:
        """A new node for this tensor, at the graph's insertion point.

        Args:
            value: The tensor.
        """
        if id(value) not in self._names:
            self._names[id(value)] = name = f"constant_{len(self._constants)}"
            self._constants[name] = value
        return with_shape(self.graph.get_attr(self._names[id(value)]), value.shape)

    def value(self, node: object) -> Tensor | None:
        """What a node always is; None where it depends on the arguments.

        Args:
            node: Of the graph.
        """
        return self._constants[str(node.target)] if isinstance(node, fx.Node) and node.op == "get_attr" else None

    def module(self) -> fx.GraphModule:
        """The graph as code. Constants become plain attributes: a buffer is looked up in Python, 0.5 us each time."""
        self.graph.lint()
        root: dict[str, Any] = {str(n.target): self.value(n) for n in self.graph.nodes if n.op == "get_attr"}
        module = fx.GraphModule(root, self.graph)
        for name in list(module._buffers):
            module.__dict__[name] = module._buffers.pop(name)
        return module


def record(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Recording:
    """Run `function(*inputs)` once without gradients and keep what it did.

    Shapes, devices and every decision that Python takes are those of this run.

    Args:
        function: Of tensors, to a tensor.
        inputs: Its arguments.

    Raises:
        ValueError: Where Python reads numbers out of something that depends on the inputs, or where the function writes
            into a tensor that outlives it, such as a running average: neither can be replayed.
    """
    recorder = _Recorder(inputs)
    with torch.no_grad(), recorder:
        result = function(*inputs)
    recorder.recording.graph.output(recorder.node(result))
    return recorder.recording


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape of the tensor that a node gives.

    Args:
        node: Of the graph.
    """
    return node.meta["shape"]


def with_shape(node: fx.Node, shape: Sequence[int]) -> fx.Node:
    """The node, after noting the shape of what it gives.

    Args:
        node: Of the graph.
        shape: Of what it gives.
    """
    node.meta["shape"] = tuple(shape)
    return node


def writes(node: fx.Node) -> bool:
    """Whether the operation changes one of its inputs.

    Args:
        node: Of the graph.
    """
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


@final
class _Recorder(TorchDispatchMode):
    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.recording = Recording()
        self._variables: dict[int, tuple[Tensor, fx.Node]] = {}  # by id, which the tensor beside it reserves
        for i, value in enumerate(inputs):
            self._note(value, self.recording.graph.placeholder(f"input_{i}"))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in _SHAPE_ONLY or not self._depends((args, kwargs)):
            return result
        if func in _LEAVING:
            raise ValueError(f"Python decides on numbers that depend on the observation or the noise ({func})")
        if func._schema.is_mutable and not self._depends(args[:1]):
            raise ValueError(f"{func} writes into a tensor that outlives the call")
        nodes = map_aggregate((args, kwargs), lambda leaf: self.node(leaf) if isinstance(leaf, Tensor) else leaf)
        node = self.recording.graph.call_function(func, *nodes)  # type: ignore[misc]
        if isinstance(result, Tensor):
            self._note(result, node)
        else:
            for i, part in enumerate(result):
                if isinstance(part, Tensor):
                    self._note(part, self.recording.graph.call_function(operator.getitem, (node, i)))
        return result

    def node(self, value: Tensor) -> fx.Node:
        """What stands for this tensor: a constant, if it does not depend on the arguments."""
        return self._variables[id(value)][1] if id(value) in self._variables else self.recording.constant(value)

    def _depends(self, arguments: Any) -> bool:
        found = []
        map_aggregate(arguments, lambda leaf: found.append(id(leaf) in self._variables))
        return any(found)

    def _note(self, value: Tensor, node: fx.Node) -> None:
        node.meta["dtype"] = value.dtype
        self._variables[id(value)] = (value, with_shape(node, value.shape))
