"""Trains pinhole's autoencoder (diffusers `AutoencoderKL`, factor 4, 4 latent channels).

    python vae.py --run runs/vae --minutes 25

Resumable: run the same command again. `--evaluate` prints PSNR on held-out renders and writes reconstructions.
"""

import argparse
import math
import signal
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image

import data
from checkpoint import load, save

CONFIG = dict(in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(16, 32, 64), layers_per_block=1,
              down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
              norm_num_groups=8, mid_block_add_attention=False, sample_size=128)


def loss_of(vae, pictures, generator, kl_weight):
    """10 x squared error + L1 + L1 of gradients (edges carry the drawing), and a small KL term."""
    posterior = vae.encode(pictures).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator).to(pictures.device)
    out = vae.decode(posterior.mean + posterior.std * noise).sample.float()
    edges = sum((torch.diff(out, dim=d) - torch.diff(pictures, dim=d)).abs().mean() for d in (2, 3))
    return 10 * F.mse_loss(out, pictures) + F.l1_loss(out, pictures) + edges + kl_weight * posterior.kl().mean() / pictures[0].numel()


@torch.no_grad()
def evaluate(vae, count=64, sheet=None):
    """Mean PSNR in dB over held-out seeds, peak = 2 (pixels in [-1, 1])."""
    vae.eval()
    total, rows = 0.0, []
    for k in range(count):
        scene, _ = data.scene_for(10**9 + k)
        picture = data.pixels(scene, *data.NATIVE)[None]
        out = vae.decode(vae.encode(picture).latent_dist.mode()).sample.clamp(-1, 1)
        total += 10 * math.log10(4 / F.mse_loss(out, picture).item())
        if k < 8:
            rows.append(torch.cat([picture[0], out[0]], 1))
    vae.train()
    if sheet:
        strip = ((torch.cat(rows, 2).permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).byte().numpy()
        Image.fromarray(strip).save(sheet)
    return total / count


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, default=Path(__file__).parent / "runs" / "vae")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--steps", type=int, default=9000, help="the learning rate falls to 5 %% over as many")
    parser.add_argument("--kl", type=float, default=1e-3)
    parser.add_argument("--evaluate", action="store_true")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    vae = AutoencoderKL(**CONFIG).to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=args.lr, weight_decay=1e-4)
    args.run.mkdir(parents=True, exist_ok=True)
    state = load(args.run, {"model": vae, "optimiser": optimiser}, device)
    step, began = state["step"], time.time()
    if args.evaluate:
        print(f"step {step}: PSNR {evaluate(vae.cpu(), sheet=args.run / 'reconstructions.png'):.2f} dB")
        return
    print(f"{sum(p.numel() for p in vae.parameters())} parameters, from step {step}", flush=True)
    saved, stopping = began, []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    while not stopping and time.time() - began < args.minutes * 60 and step < args.steps:
        pictures = data.crops(step, args.batch, args.side).to(device, memory_format=torch.channels_last)
        for group in optimiser.param_groups:
            warm = min(1, (step + 1) / 100)
            group["lr"] = args.lr * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1, step / args.steps))))
        # bfloat16 convolutions, float32 weights and loss: 1.5x on a CPU with avx512_bf16, and what a GPU wants too.
        with torch.autocast(device, torch.bfloat16):
            loss = loss_of(vae, pictures, torch.Generator().manual_seed(step), args.kl)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        step += 1
        if step % 250 == 0:
            print(f"step {step} loss {loss.item():.4f} {time.time() - began:.0f} s", flush=True)
        if time.time() - saved > 180:
            saved = time.time()
            save(args.run, {"model": vae, "optimiser": optimiser}, {"step": step})
    save(args.run, {"model": vae, "optimiser": optimiser}, {"step": step})
    print(f"step {step}: PSNR {evaluate(vae.cpu(), sheet=args.run / 'reconstructions.png'):.2f} dB", flush=True)


if __name__ == "__main__":
    main()
