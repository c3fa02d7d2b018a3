"""A graph of ONNX that was calibrated once, and written in 8 bits as often as wanted, with any of its layers in 32 bits."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .onnx_file import quiet

LINEAR = ("Conv", "Gemm", "MatMul")
# In networks without attention also what lies between convolutions, so that maps stay in 8 bits from one to the next.
BETWEEN = ("Add", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat")
_SCOPES = "pkg.torch.onnx.name_scopes"
_WRAPPED = ("classifier.", "backbone.", "model.")  # around the layers' own names


class CalibratedGraph:
    """Least and greatest values of every map, from batches {"images": [N, C, S, S]}.

    layers: by the name of the module in the network the names of its nodes, in the order of the graph: a convolution or a matrix product
    with weights, and the sums, activations and pools below it.
    """

    def __init__(self, file: Path, batches: Iterator[dict[str, np.ndarray]]) -> None:
        from onnxruntime import quantization
        from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

        self._kit: Any = quantization
        self.large = file.with_name(f"{file.name}.data").exists()
        with quiet(), tempfile.TemporaryDirectory() as folder:
            self.model = load_model_with_shape_infer(file)
            kinds = {node.op_type for node in self.model.graph.node}
            self.kinds = list(LINEAR if "Softmax" in kinds else (*LINEAR, *BETWEEN))
            calibrator = quantization.create_calibrator(
                file,
                self.kinds,
                augmented_model_path=str(Path(folder) / "augmented.onnx"),
                use_external_data_format=self.large,
            )
            calibrator.collect_data(_reader(quantization, batches))
            self.ranges = calibrator.compute_data()
        self.layers = layers_of(self.model, self.kinds)

    def write(
        self, path: Path, *, per_channel: bool = True, only: Collection[str] | None = None, keep: Collection[str] = ()
    ) -> None:
        """Write it with int8 weights and uint8 maps. only: of these layers, and nothing else; keep: these layers in 32 bits."""
        kit = self._kit
        with quiet():
            quantizer = kit.QDQQuantizer(
                copy.deepcopy(self.model),
                per_channel,
                False,
                kit.QuantType.QInt8,
                kit.QuantType.QUInt8,
                self.ranges,
                None if only is None else [node for layer in only for node in self.layers[layer]],
                [node for layer in keep for node in self.layers[layer]],
                self.kinds,
                # Products of two activations, as attention has them, stay in 32 bits.
                {"MatMulConstBOnly": True},
            )
            quantizer.quantize_model()
            quantizer.model.save_model_to_file(str(path), self.large)


def layers_of(model: Any, kinds: Collection[str]) -> dict[str, list[str]]:
    """Which nodes of these kinds each layer of a graph that torch exported has: its own, and those below it up to the next one's.

    A sum belongs to the later of its two layers. So every node that can have 8 bits is in one layer, and with all layers in 32 bits
    nothing is left in 8. A layer that is used several times has all its nodes.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    layers, owner = dict[str, list[str]](), dict[str, str]()  # owner: the layer above, by the name of a map
    place, waiting = dict[str, int](), list[str]()
    for node in model.graph.node:
        above = max((owner[name] for name in node.input if name in owner), key=place.__getitem__, default="")
        if node.op_type in LINEAR and node.input[1] in weights:
            above = _layer_of(node)
            place.setdefault(above, len(place))
            layers.setdefault(above, []).extend(
                [*waiting, node.name]
            )  # what came before the first layer is its own, too
            waiting.clear()
        elif node.op_type in kinds and node.op_type not in LINEAR:
            (layers[above] if above else waiting).append(node.name)
        owner |= dict.fromkeys(node.output, above) if above else {}
    return layers


def _layer_of(node: Any) -> str:
    """The module that holds a node's weights: by their name, or where the exporter gave them another one by the node's own scope."""
    name = node.input[1]
    if name.endswith(".weight"):
        name = name.removesuffix(".weight")
    else:
        scopes: Mapping[str, str] = {entry.key: entry.value for entry in node.metadata_props}
        # A list of names, from the outermost module to the operation, in Python's quotes.
        found = json.loads(scopes.get(_SCOPES, "[]").replace("'", '"'))
        name = found[-2] if len(found) > 1 else node.name
    for part in _WRAPPED:
        name = name.removeprefix(part)
    return name


def _reader(kit: Any, batches: Iterator[dict[str, np.ndarray]]) -> Any:
    class Reader(kit.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(batches, None)

    return Reader()
