"""From a traced JAX function to an ONNX graph of standard operators, with a free batch size.

The function is traced to its jaxpr; what depends on constants alone is computed here, every other
primitive becomes a node or two (`_HANDLERS`). Covers what networks of this package use for
inference; a primitive that is missing is named. Symbolic dimensions (of `jax.export`) may be
multiples of one, which the first axis of the first input has.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from jax.extend import core
from jax.interpreters import partial_eval
from onnx import TensorProto, helper, numpy_helper

from fsmde_jax.errors import UserError

OPSET = 17  # of 2022; runtimes in cars are not the newest
_TYPES = {
    np.dtype("float32"): TensorProto.FLOAT,
    np.dtype("int32"): TensorProto.INT32,
    np.dtype("int64"): TensorProto.INT64,
    np.dtype("uint8"): TensorProto.UINT8,
    np.dtype("bool"): TensorProto.BOOL,
}


def convert(
    function: Callable[..., Sequence[jax.Array]],
    inputs: dict[str, jax.ShapeDtypeStruct],
    outputs: Sequence[str],
    batch: str = "batch",
) -> onnx.ModelProto:
    """The ONNX model of `function`.

    Args:
      function: of arrays, to a tuple of arrays; what it closes over is stored in the model.
      inputs: names, shapes and types of its arguments; a symbolic first axis is the free batch.
      outputs: names of what it returns.
      batch: what the free axis is called in the model.
    """
    closed = jax.make_jaxpr(function)(*inputs.values())
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    kept = set(closed.jaxpr.invars) - set(jaxpr.invars)
    if kept:
        raise UserError(f"some of the inputs {list(inputs)} do not matter to the function")
    graph = _Graph(next(iter(inputs)))
    known = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    environment: dict[Any, Any] = {var: np.asarray(value) for var, value in known.items()}
    environment |= dict(zip(jaxpr.invars, inputs, strict=True))
    _run(graph, jaxpr, environment)
    for var, name in zip(jaxpr.outvars, outputs, strict=True):
        graph.node("Identity", [_value(environment, var)], output=name)

    def describe(name: str, shape: Sequence[Any], dtype: Any) -> onnx.ValueInfoProto:
        sizes = [size if isinstance(size, int) else batch for size in shape]
        return helper.make_tensor_value_info(name, _TYPES[np.dtype(dtype)], sizes)

    made = helper.make_graph(
        graph.nodes,
        "fsmde_jax",
        [describe(name, spec.shape, spec.dtype) for name, spec in inputs.items()],
        [
            describe(name, var.aval.shape, var.aval.dtype)
            for name, var in zip(outputs, jaxpr.outvars, strict=True)
        ],
        graph.initializers,
    )
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="fsmde_jax"
    )
    model.ir_version = 8  # the one that came with this opset
    onnx.checker.check_model(model, full_check=True)
    return model


class _Graph:
    """Nodes and stored constants; a value is the name of a tensor."""

    def __init__(self, first_input: str):
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._first_input = first_input
        self._batch: str | None = None

    def node(
        self, operator: str, inputs: Sequence[Any], output: str | None = None, **attributes: Any
    ) -> str:
        """Adds a node of one output and returns its name; arrays among the inputs are stored."""
        output = output or f"v{len(self.nodes)}"
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        self.nodes.append(helper.make_node(operator, names, [output], **attributes))
        return output

    def constant(self, value: Any, dtype: Any = None) -> str:
        """Stores an array and returns its name."""
        name = f"c{len(self.initializers)}"
        array = np.ascontiguousarray(np.asarray(value, dtype))
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def shape(self, sizes: Sequence[Any]) -> str:
        """A shape, of which at most one axis is a multiple of the batch."""
        return self.constant([size if isinstance(size, int) else -1 for size in sizes], np.int64)

    def full_shape(self, sizes: Sequence[Any]) -> str:
        """A shape as it is at run time, for operators that know no -1."""
        if all(isinstance(size, int) for size in sizes):
            return self.constant(sizes, np.int64)
        if self._batch is None:
            whole = self.node("Shape", [self._first_input])
            self._batch = self.node("Gather", [whole, self.constant([0], np.int64)])
        parts = []
        for size in sizes:
            if isinstance(size, int):
                parts.append(self.constant([size], np.int64))
            else:
                parts.append(self.node("Mul", [self._batch, np.array([_times(size)])]))
        return self.node("Concat", parts, axis=0)


def _times(size: Any) -> int:
    """How many times the batch a symbolic size is."""
    (name,) = size._get_vars()
    return int(size._evaluate({name: 1}))


def _run(graph: _Graph, jaxpr: Any, environment: dict[Any, Any]) -> None:
    """Adds the equations; `environment` has an array for what is constant, else a name."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        inputs = [_value(environment, atom) for atom in equation.invars]
        inner = _inner(equation)
        if inner is not None:
            inputs = inputs[len(inputs) - len(inner.jaxpr.invars) :]  # without a branch's number
            scope = dict(zip(inner.jaxpr.constvars, map(np.asarray, inner.consts), strict=True))
            scope |= dict(zip(inner.jaxpr.invars, inputs, strict=True))
            _run(graph, inner.jaxpr, scope)
            found = [_value(scope, var) for var in inner.jaxpr.outvars]
        elif not any(isinstance(value, str) for value in inputs):
            found = _fold(equation, inputs)
        elif name in _HANDLERS:
            found = [_HANDLERS[name](graph, equation, inputs)]
        else:
            raise UserError(
                f"ONNX export does not know JAX's {name!r}; write a handler for it in "
                f"{__name__}.py, or export stablehlo"
            )
        environment.update(zip(equation.outvars, found, strict=True))


def _value(environment: dict[Any, Any], atom: Any) -> Any:
    return np.asarray(atom.val) if isinstance(atom, core.Literal) else environment[atom]


def _inner(equation: Any) -> Any:
    """The closed jaxpr of a call; of code by platform, that for platforms not named."""
    if platforms := equation.params.get("branches_platforms"):
        return equation.params["branches"][platforms.index(None)]
    for key in ("jaxpr", "call_jaxpr"):
        if key in equation.params:
            return equation.params[key]
    return None


def _fold(equation: Any, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Computes what is constant; along the batch it is the same, and one of it is kept."""
    params = dict(equation.params)
    for key in ("shape", "new_sizes", "slice_sizes"):
        if key in params:
            params[key] = tuple(size if isinstance(size, int) else 1 for size in params[key])
    values = equation.primitive.bind(*(jnp.asarray(value) for value in inputs), **params)
    values = values if equation.primitive.multiple_results else [values]
    return [np.asarray(value) for value in values]


# ---------------------------------------------------------------- primitives

# (graph, equation, what it takes: names of tensors, or arrays where constant) -> name
Handler = Callable[[_Graph, Any, list[Any]], str]


def _simple(operator: str) -> Handler:
    return lambda graph, equation, values: graph.node(operator, values)


def _rsqrt(graph, equation, values) -> str:
    return graph.node("Reciprocal", [graph.node("Sqrt", values)])


def _square(graph, equation, values) -> str:
    return graph.node("Mul", [values[0], values[0]])


def _integer_pow(graph, equation, values) -> str:
    return graph.node("Pow", [values[0], graph.constant(float(equation.params["y"]), np.float32)])


def _log1p(graph, equation, values) -> str:
    return graph.node("Log", [graph.node("Add", [values[0], graph.constant(1.0, np.float32)])])


def _expm1(graph, equation, values) -> str:
    return graph.node("Sub", [graph.node("Exp", values), graph.constant(1.0, np.float32)])


def _not_equal(graph, equation, values) -> str:
    return graph.node("Not", [graph.node("Equal", values)])


def _same(graph, equation, values) -> Any:
    return values[0]


def _cast(graph, equation, values) -> str:
    return graph.node("Cast", values, to=_TYPES[np.dtype(equation.params["new_dtype"])])


def _reshape(graph, equation, values) -> str:
    return graph.node("Reshape", [values[0], graph.shape(equation.params["new_sizes"])])


def _transpose(graph, equation, values) -> str:
    return graph.node("Transpose", values, perm=equation.params["permutation"])


def _broadcast(graph, equation, values) -> str:
    """Axes of size one in place; then as far as sizes grow."""
    shape, places = equation.params["shape"], equation.params["broadcast_dimensions"]
    before = equation.invars[0].aval.shape
    sizes = [1] * len(shape)
    for size, place in zip(before, places, strict=True):
        sizes[place] = size
    reshaped = graph.node("Reshape", [values[0], graph.shape(sizes)])
    if list(sizes) == list(shape):
        return reshaped
    return graph.node("Expand", [reshaped, graph.full_shape(shape)])


def _reduce(operator: str) -> Handler:
    def handler(graph, equation, values) -> str:
        axes = [int(axis) for axis in equation.params["axes"]]
        if operator == "ReduceSum":  # since opset 13 its axes are an input
            axes_input = graph.constant(axes, np.int64)
            return graph.node(operator, [values[0], axes_input], keepdims=0)
        return graph.node(operator, values, axes=axes, keepdims=0)

    return handler


def _select(graph, equation, values) -> str:
    which, no, yes = values
    return graph.node("Where", [which, yes, no])


def _concatenate(graph, equation, values) -> str:
    return graph.node("Concat", values, axis=equation.params["dimension"])


def _cumsum(graph, equation, values) -> str:
    axis = graph.constant(equation.params["axis"], np.int64)
    return graph.node("CumSum", [values[0], axis], reverse=int(equation.params["reverse"]))


def _pad(graph, equation, values) -> str:
    config = equation.params["padding_config"]
    if any(interior or low < 0 or high < 0 for low, high, interior in config):
        raise UserError("ONNX export does not know a pad that dilates or cuts")
    widths = [low for low, _, _ in config] + [high for _, high, _ in config]
    return graph.node("Pad", [values[0], graph.constant(widths, np.int64), values[1]])


def _slice(graph, equation, values) -> str:
    params, shape = equation.params, equation.invars[0].aval.shape
    axes = [
        axis
        for axis, (start, limit) in enumerate(
            zip(params["start_indices"], params["limit_indices"], strict=True)
        )
        if isinstance(shape[axis], int) and (start, limit) != (0, shape[axis])
    ]
    strides = params["strides"] or [1] * len(shape)
    parts = [[params[key][axis] for axis in axes] for key in ("start_indices", "limit_indices")]
    parts += [axes, [strides[axis] for axis in axes]]
    return graph.node("Slice", [values[0], *(graph.constant(part, np.int64) for part in parts)])


def _gather(graph, equation, values) -> str:
    """Of known places: one (`x[..., 0, 0]`, `x[..., 1:]`), or several of an axis (`x[:, ::2]`)."""
    starts, numbers = values[1], equation.params["dimension_numbers"]
    shape, sizes = equation.invars[0].aval.shape, equation.params["slice_sizes"]
    collapsed = numbers.collapsed_slice_dims
    if not isinstance(starts, str) and starts.ndim == 2 and numbers.start_index_map == collapsed:
        (axis,) = collapsed
        others = {*range(len(shape))} - {axis}
        if set(numbers.offset_dims) == others:
            return graph.node("Gather", [values[0], graph.constant(starts[:, 0])], axis=axis)
    if isinstance(starts, str) or starts.ndim != 1 or numbers.operand_batching_dims:
        raise UserError("ONNX export knows a gather only of places that are known")
    axes = [axis for axis in numbers.start_index_map if isinstance(shape[axis], int)]
    begins = [int(starts[numbers.start_index_map.index(axis)]) for axis in axes]
    ends = [begin + sizes[axis] for begin, axis in zip(begins, axes, strict=True)]
    parts = (graph.constant(part, np.int64) for part in (begins, ends, axes))
    value = graph.node("Slice", [values[0], *parts])
    if not collapsed:
        return value
    return graph.node("Squeeze", [value, graph.constant(collapsed, np.int64)])


def _convolution(graph, equation, values) -> str:
    """Channels go first and back last; runtimes cancel neighbouring transpositions."""
    params, kernel = equation.params, values[1]
    numbers = params["dimension_numbers"]
    if (
        isinstance(kernel, str)
        or params["batch_group_count"] != 1
        or set(params["lhs_dilation"]) != {1}
    ):
        raise UserError("ONNX export knows only convolutions of constant kernels, not transposed")
    image = graph.node("Transpose", [values[0]], perm=numbers.lhs_spec)
    out = graph.node(
        "Conv",
        [image, graph.constant(kernel.transpose(numbers.rhs_spec))],
        strides=params["window_strides"],
        pads=[low for low, _ in params["padding"]] + [high for _, high in params["padding"]],
        dilations=params["rhs_dilation"],
        group=params["feature_group_count"],
    )
    return graph.node("Transpose", [out], perm=np.argsort(numbers.out_spec).tolist())


def _max_pool(graph, equation, values) -> str:
    """Of NHWC maps."""
    params = equation.params
    windows, strides, padding = (
        params[key] for key in ("window_dimensions", "window_strides", "padding")
    )
    if len(windows) != 4 or windows[0] != 1 or windows[3] != 1:
        raise UserError("ONNX export knows only a max-pooling over the two axes of maps")
    image = graph.node("Transpose", values, perm=(0, 3, 1, 2))
    out = graph.node(
        "MaxPool",
        [image],
        kernel_shape=windows[1:3],
        strides=strides[1:3],
        pads=[padding[1][0], padding[2][0], padding[1][1], padding[2][1]],
    )
    return graph.node("Transpose", [out], perm=(0, 2, 3, 1))


def _dot_general(graph, equation, values) -> str:
    """An Einsum: batch axes first, then the left's own axes, then the right's."""
    (left, right), (left_batch, right_batch) = equation.params["dimension_numbers"]
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    ranks = [len(atom.aval.shape) for atom in equation.invars]
    terms = [[""] * rank for rank in ranks]
    shared = [*zip(left_batch, right_batch, strict=True), *zip(left, right, strict=True)]
    for one, two in shared:
        terms[0][one] = terms[1][two] = next(letters)
    own = []
    for term in terms:
        for axis, letter in enumerate(term):
            if not letter:
                term[axis] = next(letters)
                own.append(term[axis])
    out = [terms[0][axis] for axis in left_batch] + own
    text = f"{''.join(terms[0])},{''.join(terms[1])}->{''.join(out)}"
    return graph.node("Einsum", values, equation=text)


_HANDLERS: dict[str, Handler] = {
    "add": _simple("Add"),
    "add_any": _simple("Add"),
    "sub": _simple("Sub"),
    "mul": _simple("Mul"),
    "div": _simple("Div"),
    "max": _simple("Max"),
    "min": _simple("Min"),
    "abs": _simple("Abs"),
    "exp": _simple("Exp"),
    "log": _simple("Log"),
    "neg": _simple("Neg"),
    "tanh": _simple("Tanh"),
    "sqrt": _simple("Sqrt"),
    "erf": _simple("Erf"),
    "logistic": _simple("Sigmoid"),
    "eq": _simple("Equal"),
    "ne": _not_equal,
    "gt": _simple("Greater"),
    "ge": _simple("GreaterOrEqual"),
    "lt": _simple("Less"),
    "and": _simple("And"),
    "rsqrt": _rsqrt,
    "square": _square,
    "integer_pow": _integer_pow,
    "log1p": _log1p,
    "expm1": _expm1,
    "stop_gradient": _same,
    "copy": _same,
    "convert_element_type": _cast,
    "reshape": _reshape,
    "squeeze": lambda graph, equation, values: graph.node(
        "Squeeze", [values[0], graph.constant(equation.params["dimensions"], np.int64)]
    ),
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_max": _reduce("ReduceMax"),
    "select_n": _select,
    "concatenate": _concatenate,
    "cumsum": _cumsum,
    "pad": _pad,
    "slice": _slice,
    "gather": _gather,
    "conv_general_dilated": _convolution,
    "reduce_window_max": _max_pool,
    "dot_general": _dot_general,
}
