"""Somebody's SavedModel: its operations looked through, then loaded by TensorFlow's own loader.

A SavedModel is a program. TensorFlow runs parts of it when it is loaded and all of it when it is
asked, and among its operations are some that read and write files. So the program is read as data
first, and one that holds anything but arithmetic is refused.
"""

from collections.abc import Callable, Iterator
from operator import attrgetter
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
# How variables get into and out of the folder; not part of any answer.
_STORING = """
    AssignVariableOp MergeV2Checkpoints RestoreV2 SaveV2 ShardedFilename StaticRegexFullMatch
    StringJoin
"""
ARITHMETIC, STORING = frozenset(_ARITHMETIC.split()), frozenset(_STORING.split())


def signature_of(
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
    except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder}: a SavedModel must be whole; {said}.") from error
    ask = loaded.signatures["serving_default"]
    inputs, outputs = ask.structured_input_signature[1], ask.structured_outputs
    if len(inputs) != 1 or len(outputs) != 1:
        raise ValueError(
            f"{folder}: a SavedModel must have one input and one output; "
            f"found {len(inputs)} and {len(outputs)}."
        )
    (name, takes), (key,) = next(iter(inputs.items())), outputs
    wanted = tf.TensorShape((None, *shape, 1))
    for what, found in (("input", takes.shape), ("output", outputs[key].shape)):
        if not found.is_compatible_with(wanted):
            raise ValueError(
                f"{folder}: the {what} of a SavedModel must have shape {_shape(wanted)}; "
                f"found {_shape(found)}."
            )

    def run(image: np.ndarray) -> np.ndarray:
        fed = tf.constant(image[None, ..., None], takes.dtype)
        return tf.cast(ask(**{name: fed})[key], tf.float32).numpy()[0, ..., 0]

    run.model = loaded  # its variables live as long as somebody holds it
    return run


def _shape(found) -> tuple:
    return tuple(found) if found.rank is not None else "any"


def check_operations(folder: Path) -> None:
    """Refuse a SavedModel that does anything but arithmetic; nothing of it is run.

    Raises:
        ValueError: If it is no SavedModel, or holds another operation; the operation is named.
    """
    read = _read(folder)
    if len(read.meta_graphs) != 1 or "serving_default" not in read.meta_graphs[0].signature_def:
        raise ValueError(f"{folder}: a SavedModel must hold one graph with serving_default.")
    graph = read.meta_graphs[0]
    functions = attrgetter("library.function")(graph.graph_def)
    held = {one.signature.name: one.node_def for one in functions}
    for function, nodes in {"": graph.graph_def.node, **held}.items():
        known = ARITHMETIC | set(held) | (STORING if _stores(function) else set())
        for node in nodes:
            if node.op not in known:
                raise _refused(folder, node.op)
    for called in _reached(graph, held):
        for node in held[called]:
            if node.op in STORING:
                raise _refused(folder, node.op)


def _read(folder: Path):
    """The program as data."""
    from google.protobuf.message import DecodeError  # noqa: PLC0415 TensorFlow's own libraries,
    from tensorflow.core.protobuf import saved_model_pb2  # noqa: PLC0415 and as slow to come

    try:
        return saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    except (OSError, DecodeError) as error:
        raise ValueError(f"{folder}: a SavedModel must hold a readable saved_model.pb.") from error


def _stores(function: str) -> bool:
    """Whether TensorFlow gave a function the name of its own saving and restoring."""
    return not function or "traced_save" in function or "traced_restore" in function


def _reached(graph, held: dict) -> set[str]:
    """The functions that an answer can come to."""
    answers = graph.signature_def["serving_default"].outputs.values()
    wanted = {one.name.split(":")[0] for one in answers}
    nodes = {node.name: node for node in graph.graph_def.node}
    reached, waiting = set(), [nodes[name] for name in wanted if name in nodes]
    seen = set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        waiting += [nodes[name] for name in _inputs(node) if name in nodes]
        for name in _called(node):
            if name in held and name not in reached:
                reached.add(name)
                waiting += list(held[name])
    return reached


def _inputs(node) -> Iterator[str]:
    for name in node.input:
        yield name.lstrip("^").split(":")[0]


def _called(node) -> Iterator[str]:
    yield node.op
    for value in node.attr.values():
        if value.func.name:
            yield value.func.name
        yield from (one.name for one in value.list.func)


def _refused(folder: Path, operation: str) -> ValueError:
    return ValueError(
        f"{folder}: a SavedModel may hold arithmetic only; found the operation {operation}."
    )
