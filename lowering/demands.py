"""What operators demand of the values of their operands, and which of them hand values on."""

from __future__ import annotations

from typing import TypeAlias

# Operators that hand on values of these operands (None: of all), moved or repeated but not changed.
PASSING: dict[str, tuple[int, ...] | None] = {
    **dict.fromkeys(
        ("Reshape", "Transpose", "Slice", "Split", "Cast", "CastLike", "Identity", "Squeeze", "Unsqueeze", "Expand",
         "Flatten", "Tile", "Pad", "Gather", "GatherElements", "GatherND", "Abs", "Trilu", "DepthToSpace",
         "SpaceToDepth", "Compress", "ReverseSequence", "ReduceMax", "ReduceMin", "Relu", "Floor", "Ceil", "Round",
         "Dropout", "SequenceAt", "Unique", "CenterCropPad"), (0,),
    ),
    "Concat": None, "Max": None, "Min": None, "SequenceConstruct": None, "ConcatFromSequence": None,
    "Where": (1, 2), "ScatterElements": (0, 2), "ScatterND": (0, 2), "Clip": (0,), "Loop": None,
}  # fmt: skip

SUMS = ("CumSum", "ReduceSum", "Mul", "MatMul", "ReduceProd", "Sum")
"""Integers may grow here: inputs that end as indices are then kept at 0 and 1."""

Limit: TypeAlias = int | tuple[int, int | str, int]
"""A number, or (operand, axis or name of the attribute with the axis, default axis): an extent."""

# Operand, lowest value, highest value (its extent less `below`).
USES: dict[str, tuple[tuple[int, int, Limit, int], ...]] = {
    "Gather": ((1, 0, (0, "axis", 0), 1),),
    "GatherElements": ((1, 0, (0, "axis", 0), 1),),
    "ScatterElements": ((1, 0, (0, "axis", 0), 1),),
    "Scatter": ((1, 0, (0, "axis", 0), 1),),
    "ArrayFeatureExtractor": ((1, 0, (0, -1, -1), 1),),
    "GatherBlockQuantized": ((1, 0, (0, "gather_axis", 0), 1),),
    "EmbedLayerNormalization": ((0, 0, (2, 0, 0), 1), (1, 0, (4, 0, 0), 1), (7, 0, (3, 0, 0), 1)),
    "RotaryEmbedding": ((1, 0, (2, 0, 0), 1), (3, 0, (1, 0, 0), 1)),
    "NegativeLogLikelihoodLoss": ((1, 0, (0, 1, 1), 1),),
    "SoftmaxCrossEntropyLoss": ((1, 0, (0, 1, 1), 1),),
    "RoiAlign": ((2, 0, (0, 0, 0), 1),),
    "ReverseSequence": ((1, 1, (0, "time_axis", 0), 0),),
    "LSTM": ((4, 1, (0, 0, 0), 0),),
    "GRU": ((4, 1, (0, 0, 0), 0),),
    "RNN": ((4, 1, (0, 0, 0), 0),),
    "TopK": ((1, 1, (0, "axis", -1), 0),),
    "OneHot": ((1, 2, 6, 0),),
    "Loop": ((0, 1, 3, 0),),
    "Tile": ((1, 1, 2, 0),),
    "ConstantOfShape": ((0, 1, 3, 0),),
    "Range": ((0, 0, 0, 0), (1, 1, 5, 0), (2, 1, 1, 0)),
    "Slice": ((1, 0, 0, 0), (2, 1, 4, 0), (3, 0, 0, 0), (4, 1, 1, 0)),
    "Pad": ((1, 0, 1, 0), (3, 0, 0, 0)),
    "Unsqueeze": ((1, 0, 0, 0),),
    "Squeeze": ((1, 0, 0, 0),),
    "CumSum": ((1, 0, 0, 0),),
    "SequenceAt": ((1, 0, 0, 0),),
    "SequenceInsert": ((2, 0, 0, 0),),
    "SequenceErase": ((1, 0, 0, 0),),
    "BitShift": ((1, 0, 3, 0),),
    "Trilu": ((1, 0, 1, 0),),
    "NonMaxSuppression": ((2, 1, 3, 0),),
    "DFT": ((1, 2, 8, 0), (2, 1, 1, 0)),
    "HannWindow": ((0, 2, 8, 0),),
    "HammingWindow": ((0, 2, 8, 0),),
    "BlackmanWindow": ((0, 2, 8, 0),),
    **{f"Reduce{n}": ((1, 0, 0, 0),)
       for n in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")},
}  # fmt: skip

EXTENTS = {"Reshape": 1, "Expand": 1, "CenterCropPad": 1}
"""Operand that is a shape: the result's, as far as it is known."""

POSITIVE = ("Sqrt", "Log", "Acosh")
"""Operators that give NaN for negative operands."""
