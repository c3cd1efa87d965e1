"""The operators of ONNX that exported networks are made of, all of which TensorRT and OpenVINO document as supported.

TensorRT: github.com/onnx/onnx-tensorrt, docs/operators.md of TensorRT 10.0, which reads opsets 9 to 20: each has a Y
for float32, and for the integers that shapes are. OpenVINO: github.com/openvinotoolkit/openvino,
src/frontends/onnx/docs/supported_ops.md of 2025: each has a supported version.
"""

SUPPORTED = frozenset(
    {"Add", "Cast", "Conv", "Div", "Expand", "Gather", "Gemm", "MaxPool", "Mul", "Pad", "ReduceMean", "Relu"}
    | {"Reshape", "Sigmoid", "Slice", "Softmax", "Sub", "Transpose", "Unsqueeze"}
    | {"BatchNormalization", "Concat", "MatMul", "Shape"}  # of the systems that TAM is compared with
)

CONSTANT_AXES = {"Pad": 3, "ReduceMean": 1, "Slice": 3, "Unsqueeze": 1}
"""Whose input of that number TensorRT wants as an initializer, where it is given."""
