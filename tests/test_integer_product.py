"""The graph of the integer product, which is kept as a file, is what this builds.

`python tests/test_integer_product.py` writes it.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from tars_rag.runtimes.integer_product import GRAPH, OFFSET, PLANES


def build() -> bytes:
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("MatMulInteger", ["rows", "planes", "offset"], ["integers"]),
            helper.make_node("Cast", ["integers"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["numbers", "steps"], ["product"]),
        ],
        "integer_product",
        [
            tensor("rows", TensorProto.UINT8, ["n", "dim"]),
            tensor("planes", TensorProto.INT8, ["dim", PLANES]),
            tensor("steps", TensorProto.FLOAT, [PLANES, 1]),
        ],
        [tensor("product", TensorProto.FLOAT, ["n", 1])],
        [helper.make_tensor("offset", TensorProto.UINT8, [], [OFFSET])],
    )
    opset = helper.make_opsetid("", 13)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def test_the_file_is_what_is_built_here() -> None:
    held = onnx.load_from_string(GRAPH.read_bytes())
    built = onnx.load_from_string(build())
    assert held.graph == built.graph
    assert held.opset_import == built.opset_import
    assert held.ir_version == built.ir_version


if __name__ == "__main__":
    GRAPH.write_bytes(build())
