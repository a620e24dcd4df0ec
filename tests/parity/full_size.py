"""Full-size UNets with random weights, evaluated once by diffusers, for `cargo test` to compare with.

    pip install torch diffusers safetensors   (versions in training/requirements.txt)
    python tests/parity/full_size.py sdxl DIR          # or sd15, sd21; needs 16 GB of memory and 6 GB of disk for sdxl
    DARKROOM_FULL_SIZE=DIR cargo test --release --test it -- --ignored --nocapture full_size

DIR gets `unet/` as checkpoints have it, weights in float16, and `reference.safetensors`: inputs at the size the network was
trained for, and what diffusers makes of them in float32. The configurations are the published ones; nothing is downloaded.
"""

import json
import resource
import sys
import time
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import save_file

CROSS = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
CONFIGS = {
    # https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5/blob/main/unet/config.json
    "sd15": {"sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8,
             "cross_attention_dim": 768, "down_block_types": CROSS[0], "up_block_types": CROSS[1]},
    # https://huggingface.co/stabilityai/stable-diffusion-2-1/blob/main/unet/config.json
    "sd21": {"sample_size": 96, "block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": [5, 10, 20, 20],
             "cross_attention_dim": 1024, "down_block_types": CROSS[0], "up_block_types": CROSS[1],
             "use_linear_projection": True, "upcast_attention": True},
    # https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/unet/config.json
    "sdxl": {"sample_size": 128, "block_out_channels": (320, 640, 1280), "attention_head_dim": [5, 10, 20],
             "cross_attention_dim": 2048, "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": True,
             "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
             "projection_class_embeddings_input_dim": 2816,
             "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
             "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")},
}


def empty(config):
    with torch.device("meta"):
        return UNet2DConditionModel(**config)


def write_weights(config, folder):
    """Random numbers of a size that keeps activations near 1, norms' weights around 1, as in make_checkpoints.py."""
    net, generator = empty(config), torch.Generator().manual_seed(5)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"} | config, indent=1))
    norms = {f"{name}.weight" for name, part in net.named_modules() if isinstance(part, (torch.nn.GroupNorm, torch.nn.LayerNorm))}
    weights = {}
    for name, parameter in net.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        weights[name] = (noise * scale + (name in norms)).half()
    save_file(weights, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    return sum(tensor.numel() for tensor in weights.values())


def loaded(config, folder):
    """In float32, one tensor at a time: the file and the network are never held together."""
    net = empty(config)
    with safe_open(folder / "diffusion_pytorch_model.safetensors", "pt") as file:
        for name in file.keys():
            owner, _, leaf = name.rpartition(".")
            part = net.get_submodule(owner)
            setattr(part, leaf, torch.nn.Parameter(file.get_tensor(name).float(), requires_grad=False))
    return net.eval()


@torch.no_grad()
def reference(config, net):
    generator, side = torch.Generator().manual_seed(6), config["sample_size"]
    told = {"latents": torch.randn(1, 4, side, side, generator=generator), "timesteps": torch.tensor([601.0]),
            "words": torch.randn(1, 77, config["cross_attention_dim"], generator=generator)}
    options = {}
    if "addition_embed_type" in config:
        told |= {"pooled": torch.randn(1, 1280, generator=generator),
                 "time_ids": torch.tensor([[1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0]])}
        options["added_cond_kwargs"] = {"text_embeds": told["pooled"], "time_ids": told["time_ids"]}
    began = time.time()
    out = net(told["latents"], told["timesteps"], told["words"], **options).sample
    print(f"evaluated in {time.time() - began:.1f} s by {torch.get_num_threads()} threads; output's deviation {out.std():.3f}")
    return told | {"out": out}


if __name__ == "__main__":
    name, folder = sys.argv[1], Path(sys.argv[2])
    count = write_weights(CONFIGS[name], folder / "unet")
    print(f"{name}: {count / 1e6:.0f} million parameters")
    save_file(reference(CONFIGS[name], loaded(CONFIGS[name], folder / "unet")), folder / "reference.safetensors")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")
