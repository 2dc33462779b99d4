# SPDX-License-Identifier: Apache-2.0
"""Fine-tune a text-to-image model with LoRA, its UNet pipelined over IPUs, on a folder of images and their captions.

With nothing else said it trains a tiny random pipeline on a sample of its own, in half a minute::

    python examples/text_to_image_lora.py --output_dir out/lora

A folder has images, and `metadata.jsonl` with a line `{"file_name": ..., "text": ...}` for each; without it the name of
a file is its caption. The adapter that is written loads into diffusers' own pipeline::

    pipe.load_lora_weights("out/lora")
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import refusals
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from ipu_core import IPUConfig, to_pipelined, training_model
from ipu_core.paths import nearest_path
from ipu_diffusers import DenoisingLoss
from ipu_diffusers.tiny import tiny_pipeline
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image, ImageDraw

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
COLOURS = ("red", "green", "blue", "white")
PROJECTIONS = ["to_q", "to_k", "to_v", "to_out.0"]


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, help="a folder of a Stable Diffusion pipeline (default: a tiny one, with random weights)")
    add("--data", type=Path, help="a folder of images (default: a sample)")
    add("--output_dir", type=Path, required=True)
    add("--layers_per_ipu", default="auto", help='blocks of the UNet on each IPU, as 3,2,1,2; "auto" with --ipus')
    add("--ipus", type=int, default=2)
    add("--rank", type=int, default=4)
    add("--steps", type=int, default=60)
    add("--rows", type=int, default=4, help="rows of a micro-batch")
    add("--accumulation", type=int, default=2, help="gradient accumulation steps")
    add("--learning_rate", type=float, default=1e-2)
    add("--resolution", type=int, help="height and width of images (default: what the UNet was made for)")
    add("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def captioned(folder: Path) -> list[tuple[Path, str]]:
    """List the images of a folder with their captions."""
    if not folder.is_dir():
        refusals.refuse(f"--data={folder} is not a folder{nearest_path(folder)}; give one of images")
    table = folder / "metadata.jsonl"
    if table.is_file():
        rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [(folder / row["file_name"], row["text"]) for row in rows]
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        refusals.refuse(f"--data={folder} has no image: give a folder with files that end in {', '.join(SUFFIXES)}")
    return [(path, path.stem.replace("_", " ")) for path in files]


def sample(folder: Path) -> Path:
    """Write a folder of discs of one colour each."""
    folder.mkdir(parents=True, exist_ok=True)
    for colour in COLOURS:
        image = Image.new("RGB", (32, 32), "black")
        ImageDraw.Draw(image).ellipse((4, 4, 28, 28), fill=colour)
        image.save(folder / f"a_{colour}_disc.png")
    return folder


@torch.no_grad()
def encoded(pipe: Any, rows: list[tuple[Path, str]], size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the latents of images, [N, channels, H, W], and their captions as the UNet reads them, [N, L, width]."""
    images = [Image.open(path).convert("RGB") for path, _ in rows]
    pixels = pipe.image_processor.preprocess(images, height=size, width=size)
    latents = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
    texts, _ = pipe.encode_prompt([text for _, text in rows], "cpu", 1, False)
    return latents, texts


def batches(
    scheduler: DDPMScheduler, latents: torch.Tensor, texts: torch.Tensor, *, rows: int, draw: torch.Generator
) -> Iterator[dict[str, torch.Tensor]]:
    """Noise images to random steps; the labels are what the UNet is to say of them."""
    while True:
        chosen = torch.randint(len(latents), (rows,), generator=draw)
        noise = torch.randn(latents[chosen].shape, generator=draw)
        steps = torch.randint(scheduler.config.num_train_timesteps, (rows,), generator=draw)
        is_noise = scheduler.config.prediction_type == "epsilon"
        yield {
            "sample": scheduler.add_noise(latents[chosen], noise, steps),
            "timestep": steps,
            "encoder_hidden_states": texts[chosen],
            "labels": noise if is_noise else scheduler.get_velocity(latents[chosen], noise, steps),
        }


def adapted_unet(pipe: Any, options: argparse.Namespace) -> Any:
    """Freeze the pipeline, put LoRA into its UNet, and return the UNet with its loss, pipelined."""
    for model in (pipe.unet, pipe.vae, pipe.text_encoder):
        model.requires_grad_(False)
    pipe.unet.add_adapter(LoraConfig(r=options.rank, lora_alpha=options.rank, target_modules=PROJECTIONS))
    pipe.unet.train()
    layers = options.layers_per_ipu
    ipu_config = IPUConfig(
        layers_per_ipu=layers if layers == "auto" else [int(n) for n in layers.split(",")],
        ipus_per_replica=options.ipus if layers == "auto" else None,
        gradient_accumulation_steps=options.accumulation,
    )
    return to_pipelined(DenoisingLoss(pipe.unet), ipu_config)


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Train, write the adapter, and return the losses."""
    options = parsed(arguments)
    refusals.unwritable_folder(str(options.output_dir))
    torch.manual_seed(options.seed)
    plain = (
        StableDiffusionPipeline.from_pretrained(options.model)
        if options.model
        else tiny_pipeline(StableDiffusionPipeline)
    )
    rows = captioned(options.data or sample(options.output_dir / "sample"))
    size = options.resolution or plain.unet.config.sample_size * plain.vae_scale_factor
    latents, texts = encoded(plain, rows, size)
    unet = adapted_unet(plain, options)
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    executor = training_model(unet, torch.optim.AdamW(trained, lr=options.learning_rate))
    scheduler = DDPMScheduler.from_config(plain.scheduler.config)
    draw = torch.Generator().manual_seed(options.seed)
    losses = []
    for batch in batches(scheduler, latents, texts, rows=options.rows * options.accumulation, draw=draw):
        executor(**batch)
        losses.append(executor.update_loss.item())
        if len(losses) == 1:
            print(executor.plan)
        if len(losses) % 10 == 0:
            print(f"step {len(losses)}: loss {sum(losses[-10:]) / 10:.4f}", flush=True)
        if len(losses) == options.steps:
            break
    weights = convert_state_dict_to_diffusers(get_peft_model_state_dict(plain.unet))
    StableDiffusionPipeline.save_lora_weights(options.output_dir, unet_lora_layers=weights)
    print(f"wrote the adapter, {sum(p.numel() for p in trained):,} parameters, to {options.output_dir}")
    return losses


if __name__ == "__main__":
    main()
