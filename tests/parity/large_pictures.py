"""Stable Diffusion's autoencoder at its full size with random weights, for measuring large pictures.

    pip install torch diffusers safetensors   (versions in training/requirements.txt)
    python tests/parity/large_pictures.py DIR
    for WAY in whole bands; do
      DARKROOM_LARGE=DIR DARKROOM_WAY=$WAY DARKROOM_SIDE=1024 cargo test --release --test it -- --ignored --nocapture large_decode
    done
    python tests/parity/large_pictures.py --tiled models/pinhole/vae 512      # what diffusers' own tiling does to a picture

DIR gets `vae/` as checkpoints have it, weights in float16. The configuration is the published one of Stable Diffusion 1.x
and 2.x; Stable Diffusion XL's has the same shapes. Nothing is downloaded.
"""

import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL

# https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5/blob/main/vae/config.json
CONFIG = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4,
          "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}


def write(folder):
    """Random numbers of a size that keeps activations near 1, norms' weights around 1, as in make_checkpoints.py."""
    net, generator = AutoencoderKL(**CONFIG), torch.Generator().manual_seed(7)
    norms = {f"{name}.weight" for name, part in net.named_modules() if isinstance(part, torch.nn.GroupNorm)}
    for name, parameter in net.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.data = noise * scale + (name in norms)
    net.half().save_pretrained(folder)


@torch.no_grad()
def tiled(folder, side):
    """How far diffusers' tiles, each normalised by itself and blended with its neighbours, are from the whole picture."""
    net = AutoencoderKL.from_pretrained(folder).float().eval()
    factor = 2 ** (len(net.config.block_out_channels) - 1)
    latents = torch.randn(1, net.config.latent_channels, side // factor, side // factor, generator=torch.Generator().manual_seed(8))
    whole = net.decode(latents).sample
    net.enable_tiling()
    net.tile_sample_min_size, net.tile_latent_min_size = side // 2, side // 2 // factor
    difference = (net.decode(latents).sample - whole).abs() * 127.5
    print(f"diffusers' tiles of {side // 2} pixels: largest difference {difference.max():.1f}/255, mean {difference.mean():.2f}/255")


if __name__ == "__main__":
    if sys.argv[1] == "--tiled":
        tiled(sys.argv[2], int(sys.argv[3]))
    else:
        write(Path(sys.argv[1]) / "vae")
