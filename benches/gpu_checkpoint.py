"""A checkpoint of Stable Diffusion 1.5's shape with random weights, as a diffusers folder in float16; nothing is downloaded.

What it draws is noise, but it takes as long to draw as with trained weights. Made in seconds on a GPU.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "parity"), str(ROOT / "tests" / "fixtures"), str(ROOT / "models" / "clip")]
import full_size  # noqa: E402
import make_checkpoints  # noqa: E402
import make_merges  # noqa: E402

# https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5, of each part's config.json
VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "sample_size": 512,
       "scaling_factor": 0.18215, "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768, "num_hidden_layers": 12,
        "num_attention_heads": 12, "max_position_embeddings": 77, "hidden_act": "quick_gelu"}
SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
            "steps_offset": 1, "set_alpha_to_one": False, "skip_prk_steps": True, "prediction_type": "epsilon"}
DEFAULTS = {"width": 512, "height": 512, "steps": 20, "guidance_scale": 7.5, "sampler": "dpmpp_2m"}


def clip_merges():
    """CLIP's merges as pairs of texts, of the pairs of token ids in models/clip."""
    tokens, pairs = make_merges.byte_tokens(), []
    for left, right in np.fromfile(ROOT / "models" / "clip" / "merges.u16", "<u2").reshape(-1, 2).tolist():
        pairs.append((tokens[left], tokens[right]))
        tokens.append(tokens[left] + tokens[right])
    return pairs


def networks(shape, vocabulary):
    """(text encoder, UNet, VAE); "tiny" is for trying the scripts that use it."""
    if shape == "tiny":
        return make_checkpoints.networks("tiny-sd", vocabulary, TEXT["max_position_embeddings"])
    marks = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    text = CLIPTextModel(CLIPTextConfig(vocab_size=vocabulary, **TEXT, **marks))
    return text, UNet2DConditionModel(**full_size.CONFIGS["sd15"]), AutoencoderKL(**VAE)


@torch.inference_mode()
def tell_deviations(text, unet, vae):
    """One evaluation of each network in float16: "nan" says that its pictures are nothing to compare, though its times are."""
    device, side = unet.device, unet.config.sample_size
    words = text(torch.zeros(1, 77, dtype=torch.long, device=device)).last_hidden_state
    latents = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(6)).to(device, unet.dtype)
    for name, out in {"text encoder": words, "UNet": unet(latents, 601, words).sample, "VAE": vae.decode(latents * 5).sample}.items():
        print(f"{name}: output's deviation {out.float().std():.3f}", flush=True)


def make(folder, shape, device):
    """Writes the folder; its path."""
    tokenizer, vocabulary = make_checkpoints.write_tokenizer(folder / "tokenizer", TEXT["max_position_embeddings"], clip_merges())
    generator = torch.Generator(device).manual_seed(5)
    with torch.device(device):
        nets = [make_checkpoints.randomise(net, generator).half() for net in networks(shape, vocabulary)]
    tell_deviations(*nets)
    text, unet, vae = nets
    pipe = StableDiffusionPipeline(text_encoder=text, unet=unet, vae=vae, tokenizer=tokenizer, scheduler=PNDMScheduler(**SCHEDULE),
                                   safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.save_pretrained(folder)
    (folder / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    make_checkpoints.write_tokenizer(folder / "tokenizer", TEXT["max_position_embeddings"], clip_merges())
    card = {"name": folder.name, "defaults": DEFAULTS | ({"width": 64, "height": 64, "steps": 4} if shape == "tiny" else {})}
    (folder / "darkroom.json").write_text(json.dumps(card))
    return folder
