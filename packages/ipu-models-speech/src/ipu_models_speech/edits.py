# SPDX-License-Identifier: Apache-2.0
"""LayerDrop of speech models as a traced choice: `Family.edits` of wav2vec 2.0, HuBERT and Whisper."""

from __future__ import annotations

from ipu_core.rewrites.layerdrop import layerdrop
from ipu_core.rewrites.source_edits import Edit

VERSIONS = ">=5.23,<5.25"

SKIPPED = """
skip_the_layer = False
if self.training and self.config.layerdrop > 0.0:
    dropout_probability = torch.rand([])
    skip_the_layer = dropout_probability < self.config.layerdrop
"""
MARKED = """
to_drop = False
if self.training and self.layerdrop > 0.0:
    dropout_probability = torch.rand([])
    if dropout_probability < self.layerdrop:
        to_drop = True
"""
CONTINUED = """
if self.training and self.layerdrop > 0.0:
    dropout_probability = torch.rand([])
    if dropout_probability < self.layerdrop:
        continue
"""


def _of_waves(target: str, digest: str, *, stable: bool) -> Edit:
    return layerdrop(
        target,
        choice=SKIPPED,
        guard="not skip_the_layer or synced_gpus",
        call="hidden_states = layer(hidden_states, attention_mask=attention_mask, **kwargs)",
        rate="self.config.layerdrop",
        digest=digest,
        versions=VERSIONS,
        probe={"layerdrop": 0.5, "do_stable_layer_norm": stable},
    )


def _adapter(target: str, digest: str) -> Edit:
    # A layer of an adapter shortens its input, so that dropping one has no static shape: that stays refused.
    return Edit(
        target=target,
        changes=(
            ("layerdrop_prob = np.random.random()", ""),
            (
                "not self.training or (layerdrop_prob > self.layerdrop)",
                "not self.training or self.layerdrop == 0.0 or np.random.random() > self.layerdrop",
            ),
        ),
        digest=digest,
        reason="a number is drawn with NumPy for every layer: it is drawn where it decides something",
        versions=VERSIONS,
        probe={"add_adapter": True},
    )


def _whisper_decoder(cache: str) -> Edit:
    return layerdrop(
        "transformers.models.whisper.modeling_whisper:WhisperDecoder.forward",
        choice=CONTINUED,
        call=(
            "hidden_states = decoder_layer(hidden_states, causal_mask, encoder_hidden_states, "
            f"encoder_attention_mask=None, {cache}={cache} if use_cache else None, use_cache=use_cache, **kwargs)"
        ),
        digest="41ae38caa117a38f",
        versions=">=5.24,<5.25",
        probe={"decoder_layerdrop": 0.5},
    )


WAV2VEC2 = (
    _of_waves(
        "transformers.models.wav2vec2.modeling_wav2vec2:Wav2Vec2Encoder.forward", "bf6efe9a5e6fc182", stable=False
    ),
    _of_waves(
        "transformers.models.wav2vec2.modeling_wav2vec2:Wav2Vec2EncoderStableLayerNorm.forward",
        "5d18d2710ecbf50d",
        stable=True,
    ),
    _adapter("transformers.models.wav2vec2.modeling_wav2vec2:Wav2Vec2Adapter.forward", "5cb78392090c07b8"),
)
HUBERT = (
    _of_waves("transformers.models.hubert.modeling_hubert:HubertEncoder.forward", "bf6efe9a5e6fc182", stable=False),
    _of_waves(
        "transformers.models.hubert.modeling_hubert:HubertEncoderStableLayerNorm.forward",
        "5d18d2710ecbf50d",
        stable=True,
    ),
)
WHISPER = (
    layerdrop(
        "transformers.models.whisper.modeling_whisper:WhisperEncoder.forward",
        choice=MARKED,
        guard="not to_drop",
        call="hidden_states = encoder_layer(hidden_states, None, **kwargs)",
        digest="b51ae1d467c67190",
        versions=VERSIONS,
        probe={"encoder_layerdrop": 0.5},
    ),
    _whisper_decoder("cache").or_for(
        ">=5.23,<5.24", digest="cdd66d31447faf76", changes=_whisper_decoder("past_key_values").changes
    ),
)
