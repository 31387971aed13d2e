"""Somebody's SavedModel: its operations checked, then loaded by TensorFlow's own loader.

A SavedModel is a program. TensorFlow runs parts of it when it is loaded and all of it when it
predicts, and among its operations are some that read and write files. So the program is read as
data first, and one that holds anything but arithmetic is refused.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

# What networks of convolutions are made of, and what TensorFlow writes around them.
_ARITHMETIC = """
    Add AddN AddV2 AvgPool3D BatchMatMulV2 BiasAdd BroadcastTo Cast ClipByValue Concat ConcatV2
    Const Conv2D Conv3D Conv3DBackpropInputV2 DepthToSpace DisableCopyOnRead Div DivNoNan Elu
    Equal Erf Exp ExpandDims Fill FloorDiv FloorMod FusedBatchNormV3 GatherV2 Greater GreaterEqual
    Identity IdentityN LeakyRelu Less LessEqual Log LogicalAnd LogicalNot LogicalOr MatMul Max
    MaxPool3D Maximum Mean Min Minimum MirrorPad Mul Neg NoOp NotEqual OnesLike Pack Pad PadV2
    PartitionedCall Placeholder PlaceholderWithDefault Pow Prod Range ReadVariableOp RealDiv Relu
    Relu6 Reshape ResizeBilinear ResizeNearestNeighbor Rsqrt Select SelectV2 Selu Shape Sigmoid
    Slice Softmax Softplus SpaceToDepth Split SplitV Sqrt Square SquaredDifference Squeeze
    StatefulPartitionedCall StopGradient StridedSlice Sub Sum Tanh Tile Transpose Unpack
    VarHandleOp VarIsInitializedOp VariableShape Where ZerosLike
"""
# How variables get into and out of the folder. TensorFlow writes functions of these for whoever
# trains on; its loader reads variables by itself and calls none of them.
_STORING = """
    AssignVariableOp MergeV2Checkpoints RestoreV2 SaveV2 ShardedFilename StaticRegexFullMatch
    StringJoin
"""
ARITHMETIC, STORING = frozenset(_ARITHMETIC.split()), frozenset(_STORING.split())
INITIAL_VALUES = {"AssignVariableOp"}  # beside each variable in the outer graph; never run
# Of an object graph: what is data, or a function. Resources run functions when they are loaded.
OBJECTS = {
    "user_object", "function", "bare_concrete_function", "variable", "constant", "captured_tensor",
}  # fmt: skip
INIT_OPS = ("saved_model_main_op", "legacy_init_op", "saved_model_init_op", "table_initializer")
INIT_SIGNATURE = "__saved_model_init_op"


def load_signature(
    tf, folder: Path, shape: tuple[int, int, int]
) -> Callable[[np.ndarray], np.ndarray]:
    """Load a SavedModel.

    Args:
        tf: TensorFlow.
        folder: With ``saved_model.pb``.
        shape: Voxels of the image that it shall take.

    Returns:
        From float32 (X, Y, Z) to probability, float32 (X, Y, Z), one scan at a time.

    Raises:
        ValueError: If it is no SavedModel, holds other operations than arithmetic, or takes or
            gives something else than one image of that shape.
    """
    check_operations(folder)
    try:
        loaded = tf.saved_model.load(str(folder))
    except Exception as error:  # whatever a damaged or hostile program makes the loader stumble on
        message = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder}: a SavedModel must be whole; {message}.") from error
    signature = getattr(loaded, "signatures", {}).get("serving_default")
    if signature is None:
        raise ValueError(f"{folder}: the objects of a SavedModel must name serving_default.")
    inputs, outputs = signature.structured_input_signature[1], signature.structured_outputs
    if len(inputs) != 1 or len(outputs) != 1:
        raise ValueError(
            f"{folder}: a SavedModel must have one input and one output; "
            f"found {len(inputs)} and {len(outputs)}."
        )
    (name, takes), (key,) = next(iter(inputs.items())), outputs
    wanted = tf.TensorShape((None, *shape, 1))
    for what, actual in (("input", takes.shape), ("output", outputs[key].shape)):
        if not actual.is_compatible_with(wanted):
            raise ValueError(
                f"{folder}: the {what} of a SavedModel must have shape {_format_shape(wanted)}; "
                f"found {_format_shape(actual)}."
            )

    def run(image: np.ndarray) -> np.ndarray:
        fed = tf.constant(image[None, ..., None], takes.dtype)
        return tf.cast(signature(**{name: fed})[key], tf.float32).numpy()[0, ..., 0]

    run.model = loaded  # its variables live as long as somebody holds it
    return run


def _format_shape(shape) -> tuple:
    return tuple(shape) if shape.rank is not None else "any"


def check_operations(folder: Path) -> None:
    """Refuse a SavedModel that does anything but arithmetic; nothing of it is run.

    Operations that read and write variables may stand in the functions that ``saver_def`` names
    for it, and only if nothing else comes to these functions: no signature, no object, no
    operation that initialises. What is not reached at all may hold arithmetic only, too.

    Raises:
        ValueError: If it is no SavedModel, is of TensorFlow 1, initialises anything when it is
            loaded, or holds another operation; the operation is named.
    """
    graph = _read_graph(folder)
    library = graph.graph_def.library
    functions = {item.signature.name: item for item in library.function}
    nodes = {node.name: node for node in graph.graph_def.node}
    if len(functions) < len(library.function) or len(nodes) < len(graph.graph_def.node):
        raise ValueError(f"{folder}: names in a SavedModel must be unique; found one twice.")
    _check_objects(folder, graph.object_graph_def)
    _check_init_ops(folder, graph, nodes)

    outputs = [
        item.name
        for definition in graph.signature_def.values()
        for item in definition.outputs.values()
    ]
    roots = {*graph.object_graph_def.concrete_functions}
    roots |= {item.gradient_func for item in library.gradient}
    outer, run = _find_reached(outputs, roots, nodes, functions)
    saver = [graph.saver_def.save_tensor_name, graph.saver_def.restore_op_name]
    saving = _find_reached(saver, (), nodes, functions)[1] - run

    for node in nodes.values():
        stores = INITIAL_VALUES if node.name not in outer else set()
        if node.op not in ARITHMETIC | set(functions) | stores:
            raise _make_refusal(folder, node.op)
    for name, function in functions.items():
        # `api_implements` lets TensorFlow exchange a function for another one when it is called.
        stores = STORING if name in saving and "api_implements" not in function.attr else set()
        for node in function.node_def:
            if node.op not in ARITHMETIC | set(functions) | stores:
                raise _make_refusal(folder, node.op)


def _read_graph(folder: Path):
    """Read the only graph of the program, as data."""
    from google.protobuf.message import DecodeError  # noqa: PLC0415 TensorFlow's own libraries,
    from tensorflow.core.protobuf import saved_model_pb2  # noqa: PLC0415 and as slow to come

    try:
        read = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    except (OSError, DecodeError) as error:
        raise ValueError(f"{folder}: a SavedModel must hold a readable saved_model.pb.") from error
    if (folder / "saved_model.cpb").exists():  # some loaders prefer it
        raise ValueError(f"{folder}: a SavedModel must be in saved_model.pb alone; found a .cpb.")
    if len(read.meta_graphs) != 1 or "serving_default" not in read.meta_graphs[0].signature_def:
        raise ValueError(f"{folder}: a SavedModel must hold one graph with serving_default.")
    (graph,) = read.meta_graphs
    if not graph.object_graph_def.nodes:
        raise ValueError(
            f"{folder}: a SavedModel must be of TensorFlow 2; found a graph without objects, "
            "parts of which would be run while it is loaded."
        )
    return graph


def _check_objects(folder: Path, objects) -> None:
    """Refuse objects that would run a function of the program while it is loaded."""
    for node in objects.nodes:
        kind = node.WhichOneof("kind")
        if kind not in OBJECTS or node.saveable_objects:
            description = f"{kind or 'unknown'} object{' with savers' if kind in OBJECTS else ''}"
            raise ValueError(
                f"{folder}: a SavedModel must hold variables and functions only; "
                f"found a {description}."
            )


def _check_init_ops(folder: Path, graph, nodes: Mapping) -> None:
    """Refuse operations that are meant to be run at loading, but for the one that does nothing."""
    named = [name for key in INIT_OPS for name in graph.collection_def[key].node_list.value]
    signature = graph.signature_def.get(INIT_SIGNATURE)
    named += [output.name for output in signature.outputs.values()] if signature else []
    for node in (nodes.get(_parse_node(name)) for name in named):
        if node is None or node.op != "NoOp" or node.input:
            what = "one that is missing" if node is None else node.op
            raise ValueError(
                f"{folder}: a SavedModel must initialise nothing but its variables; its init op "
                f"is {what if what != 'NoOp' else f'NoOp after {node.input[0]}'}."
            )


def _find_reached(
    names: Iterable[str], called: Iterable[str], nodes: Mapping, functions: Mapping
) -> tuple[set[str], set[str]]:
    """Find the outer nodes and the functions that some nodes and functions need to run."""
    outer, waiting, pending = set(), [_parse_node(name) for name in names], list(called)
    while waiting:
        node = nodes.get(waiting.pop())
        if node is None or node.name in outer:
            continue
        outer.add(node.name)
        waiting += map(_parse_node, node.input)
        pending += _list_called(node)
    run = set()
    while pending:
        name = pending.pop()
        if name in functions and name not in run:
            run.add(name)
            pending += [name_ for node in functions[name].node_def for name_ in _list_called(node)]
    return outer, run


def _parse_node(name: str) -> str:
    """Parse the name of a node from that of one of its outputs, or of a control input."""
    return name.lstrip("^").split(":")[0]


def _list_called(node) -> Iterator[str]:
    yield node.op
    for value in node.attr.values():
        if value.func.name:
            yield value.func.name
        yield from (function.name for function in value.list.func)


def _make_refusal(folder: Path, operation: str) -> ValueError:
    return ValueError(
        f"{folder}: a SavedModel may hold arithmetic only; found the operation {operation}."
    )
