"""Writes a trained run as an ordinary diffusers folder, float16, with Darkroom's model card.

    python export.py --run runs/unet --vae runs/vae --out ../models/pinhole
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from transformers import CLIPTokenizer

import data
import model
import tokens
from unet import trained_vae

HERE = Path(__file__).parent
GUIDANCE = 3.0  # before evaluate.py --sweep has chosen a better one


def latent_rgb(vae, scale, count=96):
    """Least squares from scaled latents to RGB in [0, 1] at the latents' resolution: (factors, bias)."""
    inputs, outputs = [], []
    with torch.no_grad():
        for seed in range(count):
            picture = data.pixels(data.scene_for(seed)[0], *data.NATIVE)[None]
            latents = vae.encode(picture).latent_dist.mean * scale
            small = torch.nn.functional.interpolate(picture, size=latents.shape[-2:], mode="area") / 2 + 0.5
            inputs.append(latents[0].flatten(1).T)
            outputs.append(small[0].flatten(1).T)
    a = torch.cat(inputs)
    solution = torch.linalg.lstsq(torch.cat([a, torch.ones(len(a), 1)], 1), torch.cat(outputs)).solution
    return [[round(v, 5) for v in row] for row in solution[:-1].tolist()], [round(v, 5) for v in solution[-1].tolist()]


def guidance():
    """What the sweep chose."""
    path = HERE / "guidance.json"
    return json.loads(path.read_text())["chosen"] if path.exists() else GUIDANCE


def card(vae, scale, step):
    factors, bias = latent_rgb(vae, scale)
    return {
        "name": "pinhole",
        "description": "A small demonstration and test model trained on our own drawings of 24 kinds of object in 6 places; not Stable Diffusion.",
        "license": "MIT OR Apache-2.0",
        "training_steps": step,
        "size_multiple": 16, "min_side": 64, "max_side": 256,
        "defaults": {"width": 128, "height": 128, "steps": 20, "guidance_scale": guidance(), "sampler": "dpmpp_2m",
                     "sigma_schedule": "default"},
        "latent_rgb_factors": factors, "latent_rgb_bias": bias,
    }


def pipeline(run, vae_run):
    """The pipeline of the run's averaged weights, float32, and its latent scale and step."""
    blob = torch.load(run / "state.pt", map_location="cpu", weights_only=True)
    nets = torch.nn.ModuleDict({"unet": model.unet(), "text": model.text_encoder()})
    nets.load_state_dict(blob["ema"])
    vae = trained_vae(vae_run)
    scale = blob["state"]["scale"]
    vae.register_to_config(scaling_factor=scale)
    scheduler = DPMSolverMultistepScheduler(**{k: v for k, v in model.SCHEDULE.items() if k != "clip_sample"})
    tokens.write(run / "tokenizer")
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=nets["text"].eval(), tokenizer=CLIPTokenizer.from_pretrained(run / "tokenizer"),
        unet=nets["unet"].eval(), scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe, scale, blob["state"]["step"]


def forget_folders(out):
    """Takes out where on this machine a part was loaded from."""
    for path in out.glob("*/config.json"):
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, default=HERE / "runs" / "unet")
    parser.add_argument("--vae", type=Path, default=HERE / "runs" / "vae")
    parser.add_argument("--out", type=Path, default=HERE.parent / "models" / "pinhole")
    args = parser.parse_args()
    pipe, scale, step = pipeline(args.run, args.vae)
    described = card(pipe.vae, scale, step)
    pipe.to(torch.float16).save_pretrained(args.out)
    tokens.write(args.out / "tokenizer")
    # vocab.json and merges.txt say it all; a second form of the same would only be larger.
    (args.out / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    forget_folders(args.out)
    (args.out / "darkroom.json").write_text(json.dumps(described, indent=2) + "\n")
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"step {step}: {size / 1e6:.2f} MB in {args.out}")


if __name__ == "__main__":
    main()
