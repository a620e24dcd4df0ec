"""The checkpoints that are compared: the committed ones of tests/fixtures, and others made here of the same classes with other
random weights, widths and depths, since nothing may be fitted to the committed ones."""

import json
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

FIXTURES = Path(__file__).parent.parent / "fixtures"
sys.path.insert(0, str(FIXTURES))
import make_checkpoints  # noqa: E402
import make_families  # noqa: E402

COMMITTED = ["tiny-sd", "tiny-sd2", "tiny-sdxl", "tiny-sdxl-refiner", "tiny-sdxl-turbo", "tiny-sd-turbo", "tiny-lcm", "tiny-inpainting"]
# How each of the others differs from the committed one of its family.
CHANGES = {
    "wide": {"unet": {"width": 2, "layers": 1}, "vae": {"width": 2, "layers": 2}, "text": {"num_hidden_layers": 2}},
    "deep": {"unet": {"width": 1, "layers": 3}, "vae": {"width": 1, "layers": 1},
             "text": {"num_hidden_layers": 5, "num_attention_heads": 1}},
}


def changed_network(cls, width, layers):
    def make(**config):
        channels = tuple(width * each for each in config["block_out_channels"])
        return cls(**config | {"block_out_channels": channels, "layers_per_block": layers})

    return make


@contextmanager
def changed(change, folder):
    """The fixtures' scripts, with the classes that they make changed on the way, and writing elsewhere."""
    kept = []

    def put(module, name, value):
        kept.append((module, name, getattr(module, name)))
        setattr(module, name, value)

    for module in (make_checkpoints, make_families):
        put(module, "HERE", folder)
        put(module, "UNet2DConditionModel", changed_network(module.UNet2DConditionModel, **change["unet"]))
        put(module, "AutoencoderKL", changed_network(module.AutoencoderKL, **change["vae"]))
        text = module.CLIPTextConfig
        put(module, "CLIPTextConfig", lambda text=text, **config: text(**config | change["text"]))
    try:
        yield
    finally:
        for module, name, value in reversed(kept):
            setattr(module, name, value)


def made(name, change, folder, seed):
    """One of another shape; its path."""
    target = folder / f"{name}-{change}"
    if target.exists():
        return target
    with changed(CHANGES[change], folder):
        if name in make_families.CLASSES:
            make_families.saved(name, seed)
        else:
            save_plain(name, folder / name, seed)
    (folder / name).rename(target)
    return target


def save_plain(style, folder, seed):
    """What make_checkpoints.py makes, in float16, without its references."""
    tokenizer, vocabulary = make_checkpoints.write_tokenizer(folder / "tokenizer", 24)
    generator = torch.Generator().manual_seed(seed)
    nets = [make_checkpoints.randomise(net, generator).half() for net in make_checkpoints.networks(style, vocabulary, 24)]
    schedule = DDIMScheduler(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                             clip_sample=False, set_alpha_to_one=False, steps_offset=1,
                             prediction_type="v_prediction" if style == "tiny-sd2" else "epsilon")
    StableDiffusionPipeline(text_encoder=nets[0], unet=nets[1], vae=nets[2], tokenizer=tokenizer, scheduler=schedule,
                            **make_families.UNCHECKED).save_pretrained(folder)
    make_checkpoints.write_tokenizer(folder / "tokenizer", 24)
    (folder / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)


def as_published(folder, target):
    """A copy whose scheduler's file says what those of the published checkpoints say: `clip_sample` is false (docs/parity.md). Where a
    file says nothing, the classes of `ddpm` and `ddim` clip to 1, and a picture whose latents are all clipped is of one colour in parts, of
    which the decoder's norms divide rounding by nothing. That case is in tests/fixtures/goldens/tiny-sdxl.safetensors (`ddim.odd`)."""
    target.mkdir(exist_ok=True)
    copy = target / folder.name
    shutil.copytree(folder, copy)
    file = copy / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({"clip_sample": False} | json.loads(file.read_text()), indent=2))
    return copy


def stored_as(source, dtype, folder):
    """A copy of a checkpoint with its weights in another type; its path."""
    from safetensors.torch import load_file, save_file

    target = folder / f"{source.name}-{str(dtype).removeprefix('torch.')}"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    for file in target.rglob("*.safetensors"):
        save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    return target
