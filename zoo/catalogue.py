"""Small models of every kind that `transformers` has, with random weights: nothing is downloaded.

Few layers and narrow ones, but the operators and their order are those of the real models. Every family is exported
by both of torch's exporters, static and with dynamic axes, and has twins in float16 and bfloat16 (`exports.export`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .exports import DTYPES, EXPORTERS, Example, cached, export

if TYPE_CHECKING:
    import torch
    from onnx import ModelProto

VOCABULARY = 128
TEXT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "vocab_size": VOCABULARY, "max_position_embeddings": 64,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
AUDIO = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 32,
    "num_feat_extract_layers": 3, "conv_dim": (16, 16, 16), "conv_kernel": (10, 3, 2), "conv_stride": (5, 2, 2),
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
SPEECH = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": VOCABULARY,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "use_cache": False,
}  # fmt: skip

TOKENS = {0: "batch", 1: "sequence"}
TARGET = {0: "batch", 1: "target"}
IMAGES = {0: "batch"}
SIZES = {0: "batch", 2: "height", 3: "width"}


@dataclass(frozen=True)
class Family:
    """A kind of model. lacking: for an exporter that cannot export it, why."""

    name: str
    kind: str
    build: Callable[[], Example]
    axes: dict[str, dict[int, str]]
    lacking: dict[str, str] = field(default_factory=dict)


FAMILIES: dict[str, Family] = {}


def family(
    kind: str, axes: dict[str, dict[int, str]], **lacking: str
) -> Callable[[Callable[[], Example]], Callable[[], Example]]:
    def register(build: Callable[[], Example]) -> Callable[[], Example]:
        name = build.__name__.replace("_", "-")
        FAMILIES[name] = Family(name, kind, build, axes, lacking)
        return build

    return register


def tokens(batch: int = 2, length: int = 10) -> torch.Tensor:
    import torch

    return torch.randint(3, VOCABULARY, (batch, length))


def text(**more: Any) -> dict[str, torch.Tensor]:
    import torch

    ids = tokens()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **more}


def images(side: int = 32, batch: int = 2) -> dict[str, torch.Tensor]:
    import torch

    return {"pixel_values": torch.randn(batch, 3, side, side)}


READS = {"input_ids": TOKENS, "attention_mask": TOKENS}


@family("encoder", READS)
def bert() -> Example:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(**TEXT)), text()


@family("encoder", READS)
def distilbert() -> Example:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(
        dim=32, n_layers=2, n_heads=4, hidden_dim=64, vocab_size=VOCABULARY, max_position_embeddings=64
    )
    return DistilBertForSequenceClassification(config), text()


@family("encoder, disentangled attention", READS)
def deberta() -> Example:
    from transformers import DebertaV2Config, DebertaV2Model

    config = DebertaV2Config(
        **TEXT, relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"], share_att_key=True,
        norm_rel_ebd="layer_norm",
    )  # fmt: skip
    return DebertaV2Model(config), text()


@family("decoder", READS)
def gpt2() -> Example:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=VOCABULARY, n_positions=64, use_cache=False)
    return GPT2LMHeadModel(config), text()


@family("decoder", READS)
def opt() -> Example:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64, vocab_size=VOCABULARY,
        max_position_embeddings=64, word_embed_proj_dim=32, use_cache=False,
    )  # fmt: skip
    return OPTForCausalLM(config), text()


@family("decoder, rotary, grouped queries", READS)
def llama() -> Example:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**TEXT, num_key_value_heads=2, use_cache=False)), text()


PAST = {0: "batch", 2: "past"}


@family(
    "decoder, with its cache as inputs and outputs",
    {
        "input_ids": TOKENS, "attention_mask": {0: "batch", 1: "total"},
        "key_0": PAST, "value_0": PAST, "key_1": PAST, "value_1": PAST,
    },
)  # fmt: skip
def llama_cached() -> Example:
    import torch
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    class Step(torch.nn.Module):
        """One step of generation: tokens and the cache so far, to logits and the cache from then on."""

        def __init__(self, model: LlamaForCausalLM) -> None:
            super().__init__()
            self.model = model

        def set_attn_implementation(self, name: str) -> None:
            self.model.set_attn_implementation(name)

        def forward(
            self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **past: torch.Tensor
        ) -> tuple[torch.Tensor, ...]:
            cache = DynamicCache(config=self.model.config)
            for layer in range(2):
                cache.update(past[f"key_{layer}"], past[f"value_{layer}"], layer)
            found = self.model(input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True)
            kept = [t for layer in found.past_key_values.layers for t in (layer.keys, layer.values)]
            return (found.logits, *kept)

    model = LlamaForCausalLM(LlamaConfig(**TEXT, num_key_value_heads=2))
    past = {f"{what}_{layer}": torch.randn(2, 2, 5, 8) for layer in range(2) for what in ("key", "value")}
    return Step(model), {"input_ids": tokens(2, 3), "attention_mask": torch.ones(2, 8, dtype=torch.long), **past}


@family("decoder, sliding windows", READS)
def gemma3() -> Example:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        **TEXT, num_key_value_heads=2, head_dim=8, sliding_window=6, sliding_window_pattern=2, use_cache=False
    )
    return Gemma3ForCausalLM(config), text()


@family("decoder, normalised queries and keys", READS)
def qwen3() -> Example:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**TEXT, num_key_value_heads=2, head_dim=8, use_cache=False)), text()


@family("decoder, linear biases", READS)
def bloom() -> Example:
    from transformers import BloomConfig, BloomForCausalLM

    config = BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=VOCABULARY, use_cache=False)
    return BloomForCausalLM(config), text()


@family("decoder, mixture of experts", READS)
def mixtral() -> Example:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(**TEXT, num_key_value_heads=2, num_local_experts=4, use_cache=False)
    model = MixtralForCausalLM(config)
    model.set_experts_implementation("batched_mm")  # the others are no ONNX
    return model, text()


@family("encoder–decoder, relative positions", {**READS, "decoder_input_ids": TARGET})
def t5() -> Example:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=VOCABULARY, use_cache=False,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return T5ForConditionalGeneration(config), text(decoder_input_ids=tokens(2, 6))


@family("encoder–decoder", {**READS, "decoder_input_ids": TARGET})
def bart() -> Example:
    from transformers import BartConfig, BartForConditionalGeneration

    return BartForConditionalGeneration(BartConfig(**SPEECH, max_position_embeddings=64)), text(
        decoder_input_ids=tokens(2, 6)
    )


@family(
    "audio encoder–decoder", {"input_features": {0: "batch"}, "decoder_input_ids": TARGET},
    legacy="aten::diff is not supported",
)  # fmt: skip
def whisper() -> Example:
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(**SPEECH, num_mel_bins=16, max_source_positions=24, max_target_positions=32)
    inputs = {"input_features": torch.randn(2, 16, 48), "decoder_input_ids": tokens(2, 6)}
    return WhisperForConditionalGeneration(config), inputs


@family("vision transformer", {"pixel_values": IMAGES})
def vit() -> Example:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(**VISION, num_labels=10)), images()


@family("vision and text", {**READS, "pixel_values": {0: "images"}})
def clip() -> Example:
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(text_config={**TEXT, "eos_token_id": 2}, vision_config=VISION, projection_dim=16)
    return CLIPModel(config), text(**images(batch=3))


@family("vision transformer, shifted windows", {"pixel_values": IMAGES})
def swin() -> Example:
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, num_labels=10
    )
    return SwinForImageClassification(config), images()


@family("convolutional", {"pixel_values": SIZES})
def convnext() -> Example:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 2], num_stages=2, image_size=32, num_labels=10)
    return ConvNextForImageClassification(config), images()


@family("convolutional", {"pixel_values": SIZES})
def resnet() -> Example:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 64], depths=[1, 2, 1], layer_type="bottleneck", num_labels=10
    )
    return ResNetForImageClassification(config), images(64)


@family("convolutional, squeeze and excitation", {"pixel_values": SIZES})
def efficientnet() -> Example:
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    config = EfficientNetConfig(
        image_size=64, width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, kernel_sizes=[3, 5],
        in_channels=[32, 16], out_channels=[16, 24], strides=[1, 2], num_block_repeats=[1, 2], expand_ratios=[1, 4],
        depthwise_padding=[], num_labels=10,
    )  # fmt: skip
    return EfficientNetForImageClassification(config), images(64)


@family("convolutional, depthwise", {"pixel_values": IMAGES}, dynamo="left out: its 52 convolutions take minutes")
def mobilenet_v2() -> Example:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(depth_multiplier=0.35, image_size=64, num_labels=10)
    return MobileNetV2ForImageClassification(config), images(64)


@family("segmentation", {"pixel_values": IMAGES})
def segformer() -> Example:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[16, 16, 32, 32], num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=32,
        num_labels=5,
    )  # fmt: skip
    return SegformerForSemanticSegmentation(config), images(64)


@family("detection", {"pixel_values": SIZES, "pixel_mask": {0: "batch", 1: "height", 2: "width"}})
def detr() -> Example:
    import torch
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    config = DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone, d_model=32,
        encoder_layers=1, decoder_layers=1, encoder_ffn_dim=64, decoder_ffn_dim=64, encoder_attention_heads=4,
        decoder_attention_heads=4, num_queries=5,
    )  # fmt: skip
    return DetrForObjectDetection(config), {**images(64), "pixel_mask": torch.ones(2, 64, 64, dtype=torch.long)}


@family("audio encoder", {"input_values": {0: "batch", 1: "samples"}})
def wav2vec2() -> Example:
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    return Wav2Vec2ForCTC(Wav2Vec2Config(**AUDIO)), {"input_values": torch.randn(2, 1600)}


@family("state space", {"input_ids": {0: "batch"}})  # its loop over the tokens is unrolled
def mamba() -> Example:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=VOCABULARY, state_size=4, use_cache=False)
    return MambaForCausalLM(config), {"input_ids": tokens(2, 6)}


@family(
    "audio codec, recurrent", {"hidden_states": {0: "batch", 2: "samples"}}, dynamo="the padding depends on data"
)  # fmt: skip
def encodec() -> Example:
    import torch
    from transformers import EncodecConfig, EncodecModel

    config = EncodecConfig(
        num_filters=4, hidden_size=16, codebook_size=32, codebook_dim=16, upsampling_ratios=[4, 2], num_lstm_layers=1,
        target_bandwidths=[1.5],
    )  # fmt: skip
    return EncodecModel(config).encoder, {"hidden_states": torch.randn(2, 1, 320)}


@dataclass(frozen=True)
class Variant:
    """One export of a family."""

    family: str
    exporter: str
    dynamic: bool
    dtype: str = "float32"

    @property
    def name(self) -> str:
        parts = [self.family, self.exporter, "dynamic" if self.dynamic else "static"]
        return "-".join([*parts, self.dtype] if self.dtype != "float32" else parts)

    def file(self, folder: Path) -> Path:
        """The exported model, from the folder or made now. Raises whatever the exporter raises."""
        of = FAMILIES[self.family]
        constants = [TEXT, VISION, AUDIO, SPEECH]
        identity = [
            inspect.getsource(of.build),
            constants,
            {k: {str(a): n for a, n in v.items()} for k, v in of.axes.items()},
        ]
        return cached(folder, self.name, identity, self.make)

    def make(self, path: Path, seed: int = 0) -> None:
        """Export the model to this path. Raises whatever the exporter raises."""
        of = FAMILIES[self.family]
        export(of.build, path, self.exporter, of.axes if self.dynamic else None, self.dtype, seed)


def variants(name: str) -> list[Variant]:
    """All exports of a family: both exporters, dynamic and static, then the narrow twins by the quicker exporter."""
    of = FAMILIES[name]
    exporters = [e for e in ("dynamo", "legacy") if e not in of.lacking]
    found = [Variant(name, exporter, dynamic) for exporter in exporters for dynamic in (True, False)]
    return found + [Variant(name, exporters[-1], True, dtype) for dtype in ("float16", "bfloat16")]


def build(
    name: str, exporter: str | None = None, dynamic: bool = True, dtype: str = "float32", seed: int = 0, **unknown: Any
) -> ModelProto:
    """The export of a family of `FAMILIES`, made now. The exporter is by default the older one where it can.

    Raises `UserError` for what there is not, a missing package, or an export that fails.
    """
    if name not in FAMILIES:
        raise UserError(f"there is no export {name!r}; choose from {', '.join(FAMILIES)}")
    if unknown:
        raise UserError(f"an export has no size {next(iter(unknown))!r}; it has exporter, dynamic, dtype, seed")
    lacking = FAMILIES[name].lacking
    exporter = exporter or ("dynamo" if "legacy" in lacking else "legacy")
    for what, value, known in (("exporter", exporter, EXPORTERS), ("dtype", dtype, DTYPES)):
        if value not in known:
            raise UserError(f"there is no {what} {value!r}; choose from {', '.join(known)}")
    if exporter in lacking:
        raise UserError(f"{name} cannot be exported by {exporter}: {lacking[exporter]}")
    try:
        import onnx
        import onnxscript  # noqa: F401
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(f"exports need the `models` extra: pip install 'xrlflow[models]' ({error})") from error
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            Variant(name, exporter, bool(dynamic), dtype).make(path, seed)
        except (RuntimeError, ValueError, AssertionError, torch.onnx.OnnxExporterError) as error:
            raise UserError(f"{name} could not be exported by {exporter}: {str(error).splitlines()[0]}") from error
        return onnx.load(path)
