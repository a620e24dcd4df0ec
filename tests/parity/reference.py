"""diffusers' pipelines behind one method: what a request to Darkroom is there."""

import copy
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
import transformers
from diffusers import (LCMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline,
                       StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline, StableDiffusionXLPipeline)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils import logging
from PIL import Image

import reference_samplers

logging.set_verbosity_error()
logging.disable_progress_bar()
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

PIPELINES = {False: (StableDiffusionPipeline, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline),
             True: (StableDiffusionXLPipeline, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline)}


@contextmanager
def noise_in_float32():
    """PyTorch's CPU generator draws other numbers in half precision; here they are those of float32, rounded."""
    randn = torch.randn

    def rounded(*args, dtype=None, **options):
        return randn(*args, **options).to(dtype or torch.float32)

    torch.randn = rounded
    try:
        yield
    finally:
        torch.randn = randn


def encode_one_colour_in_double(vae):
    """What is masked wholly is shown to the network as grey, and of one colour the encoder's norms divide rounding by nothing."""
    encode, exact = vae.encode, copy.deepcopy(vae).double()

    def encoded(x, **options):
        if not bool((x == x.flatten()[0]).all()):
            return encode(x, **options)
        parameters = exact.encode(x.double()).latent_dist.parameters
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(parameters.to(x.dtype)))

    vae.encode = encoded


class Reference:
    """One checkpoint, on the CPU."""

    def __init__(self, folder, dtype=torch.float32):
        self.dtype = dtype
        self.is_xl = "tokenizer_2" in {each.name for each in folder.iterdir()}
        text_to_image, image_to_image, inpainting = PIPELINES[self.is_xl]
        self.is_refiner = self.is_xl and not (folder / "tokenizer").exists()
        options = {"add_watermarker": False} if self.is_xl else {"safety_checker": None, "requires_safety_checker": False}
        first = inpainting if self.is_refiner or "inpainting" in folder.name else text_to_image
        pipe = first.from_pretrained(folder, torch_dtype=dtype, **options)
        self.has_mask = pipe.unet.config.in_channels == 9
        if self.has_mask and dtype == torch.float32:
            encode_one_colour_in_double(pipe.vae)
        # `StableDiffusionPipeline` sets `steps_offset` to 1, which latent consistency models' own pipeline leaves as it is.
        is_lcm = pipe.scheduler.__class__ is LCMScheduler
        self.config = LCMScheduler.from_pretrained(folder, subfolder="scheduler").config if is_lcm else pipe.scheduler.config
        self.pipes = {first: pipe}
        self.text_to_image, self.image_to_image, self.inpainting = first, image_to_image, inpainting

    def pipe(self, cls):
        if cls not in self.pipes:
            options = {"add_watermarker": False} if self.is_xl else {"requires_safety_checker": False}
            self.pipes[cls] = cls(**self.pipes[self.text_to_image].components, **options)
        pipe = self.pipes[cls]
        pipe.set_progress_bar_config(disable=True)
        return pipe

    @torch.no_grad()
    def draw(self, cell):
        """Pictures in bytes, (N, H, W, 3), and the last latents."""
        with noise_in_float32() if self.dtype != torch.float32 else nullcontext():
            return self.drawn(cell)

    def drawn(self, cell):
        count, seed = cell["num_images"], cell["seed"]
        generators = [torch.Generator().manual_seed(seed + index) for index in range(count)]
        # A checkpoint that is shown a mask has one pipeline: without a mask all is to be drawn.
        whole = self.inpainting if self.has_mask else self.image_to_image
        cls = {"text": self.text_to_image, "image": whole, "mask": self.inpainting}[cell["start"]]
        pipe = self.pipe(cls)
        pipe.scheduler = reference_samplers.scheduler(
            cell["sampler"], self.config, cell["schedule"], cell["steps"], generators)
        kept = {}

        def keep(_pipe, _step, _time, values):
            kept["latents"] = values["latents"].clone()
            return values

        options = {"prompt": [cell["prompt"]] * count, "negative_prompt": [cell["negative_prompt"] or ""] * count,
                   "num_inference_steps": cell["steps"], "guidance_scale": cell["guidance_scale"], "eta": cell["eta"],
                   "generator": generators, "output_type": "np", "callback_on_step_end": keep}
        if cls in PIPELINES[self.is_xl][::2]:
            options |= {"width": cell["width"], "height": cell["height"]}
        if self.is_xl and not cell["negative_prompt"]:
            del options["negative_prompt"]
        options |= self.start(pipe, cell, generators)
        doubled = self.dtype == torch.float64 or reference_samplers.has_double_coefficients(cell["sampler"], cell["schedule"])
        with reference_samplers.in_double(cell["sampler"], pipe.scheduler) if doubled else nullcontext():
            images = pipe(**options).images
        return (images * 255).round().astype(np.uint8), kept["latents"].float()

    def start(self, pipe, cell, generators):
        """What it starts from."""
        count, size = cell["num_images"], (cell["width"], cell["height"])
        white = Image.new("L", size, 255)
        if cell["start"] == "image":
            mask = {"mask_image": [white] * count} if self.has_mask else {}
            return {"image": [cell["image"]] * count, "strength": cell["strength"]} | mask
        if cell["start"] == "mask":
            return {"image": [cell["image"]] * count, "mask_image": [cell["mask"]] * count, "strength": cell["strength"]}
        if self.has_mask:  # all of a black picture is to be drawn
            return {"image": [Image.new("RGB", size)] * count, "mask_image": [white] * count, "strength": 1.0}
        if self.is_refiner:
            # There is no pipeline that draws with a refiner from noise alone; the one that draws all of a picture anew does, if
            # it is given latents, which it need not encode, and the noise, of which it would draw the picture's share first.
            shape = (1, pipe.unet.config.in_channels, size[1] // pipe.vae_scale_factor, size[0] // pipe.vae_scale_factor)
            noise = torch.cat([torch.randn(shape, generator=each, dtype=self.dtype) for each in generators])
            # Nothing is kept of the picture, whatever its noise.
            pipe.scheduler.add_noise = lambda original, _noise, _timesteps: original
            return {"image": torch.zeros_like(noise), "mask_image": [white] * count, "latents": noise, "strength": 1.0}
        return {}
