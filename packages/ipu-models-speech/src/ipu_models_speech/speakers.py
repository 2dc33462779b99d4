# SPDX-License-Identifier: Apache-2.0
"""Statistics over the frames of each recording, with static shapes: padded frames count nothing."""

from __future__ import annotations

from ipu_core.rewrites.source_edits import Edit

STATISTICS_OF_FRAMES = Edit(
    target="transformers.models.wav2vec2.modeling_wav2vec2:Wav2Vec2ForXVector.forward",
    changes=(
        (
            """
            mean_features = []
            std_features = []
            for i, length in enumerate(tdnn_output_lengths):
                mean_features.append(hidden_states[i, :length].mean(dim=0))
                std_features.append(hidden_states[i, :length].std(dim=0))
            mean_features = torch.stack(mean_features)
            std_features = torch.stack(std_features)
            """,
            """
            frames = torch.arange(hidden_states.shape[1], device=hidden_states.device)
            num_frames = tdnn_output_lengths[:, None].clamp(max=hidden_states.shape[1])
            is_frame = (frames < num_frames)[:, :, None]
            mean_features = torch.where(is_frame, hidden_states, 0.0).sum(dim=1) / num_frames
            deviations = torch.where(is_frame, hidden_states - mean_features[:, None], 0.0)
            std_features = (deviations.pow(2).sum(dim=1) / (num_frames - 1)).sqrt()
            """,
        ),
    ),
    digest="05a63dca128e8593",
    reason="the frames of each recording are sliced by their number",
    versions=">=5.23,<5.25",
)
