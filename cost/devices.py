"""Devices that the roofline knows.

Sources of the figures (dense rates, no structured sparsity):

- `a100`: NVIDIA A100 80 GB SXM data sheet: FP64 9.7, FP32 19.5, FP16/BF16 tensor 312 TFLOP/s, INT8 624 TOP/s,
  2039 GB/s.
- `h100`: NVIDIA H100 SXM data sheet: FP64 34, FP32 67, FP16/BF16 tensor 989, FP8/INT8 1979, 3.35 TB/s.
- `h200`: NVIDIA H200 SXM data sheet: as H100, 4.8 TB/s.
- `epyc-1t`: one core of an AVX2 server processor. **Nominal**: 3.0 GHz, two 256-bit FMA units, hence 3.0 × 2 × 8 × 2 =
  96 GFLOP/s in FP32; 20 GB/s is what one core commonly draws from memory. No single product is meant.

FP32 matrix products are priced without TF32, since ONNX promises float32. `launch` is nominal: what one operator
costs over its kernel, about 3 µs for a CUDA launch inside a stream, about 2 µs for a CPU runtime's dispatch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """A device as the roofline sees it.

    matrix, vector: peak FLOP/s by dtype, for matrix products and for everything else; a dtype that is not listed
        runs at the rate of float32.
    bandwidth: bytes/s to and from memory.
    launch: milliseconds that each operator costs beside its work.
    lanes: width in output channels of the smallest tile that reaches the peak; narrower groups of a grouped
        convolution waste the rest.
    """

    name: str
    matrix: Mapping[str, float]
    vector: Mapping[str, float]
    bandwidth: float
    launch: float
    lanes: int

    def peak(self, dtype: str, matrix: bool) -> float:
        """FLOP/s in `dtype`, of matrix products or of other work."""
        rates = self.matrix if matrix else self.vector
        return rates.get(dtype, rates["float32"])


def _gpu(name: str, double: float, single: float, half: float, eighth: float, bandwidth: float) -> Device:
    matrix = {"float64": double, "float32": single, "float16": half, "bfloat16": half, "int8": eighth, "uint8": eighth}
    vector = {"float64": double, "float32": single, "float16": 2 * single, "bfloat16": 2 * single}
    tera = 1e12
    return Device(
        name,
        {k: v * tera for k, v in matrix.items()},
        {k: v * tera for k, v in vector.items()},
        bandwidth * tera,
        launch=0.003,
        lanes=32,
    )


DEVICES: Mapping[str, Device] = {
    d.name: d
    for d in (
        Device(
            "epyc-1t",
            {"float64": 48e9, "float32": 96e9, "int8": 192e9, "uint8": 192e9},
            {"float64": 48e9, "float32": 96e9},
            bandwidth=20e9,
            launch=0.002,
            lanes=8,
        ),
        _gpu("a100", 9.7, 19.5, 312.0, 624.0, 2.039),
        _gpu("h100", 34.0, 67.0, 989.0, 1979.0, 3.35),
        _gpu("h200", 34.0, 67.0, 989.0, 1979.0, 4.8),
    )
}
"""Devices by name."""
