"""What every pair of a sampler and a sigma schedule is in diffusers: a scheduler that any of its pipelines takes.

Most pairs are a class and its options. What diffusers has not is made of what it has:

* ComfyUI's sigma schedules are put in the place of the levels that a class makes with `use_karras_sigmas`;
* the classes that know no sigma schedule (`ddpm`, `ddim`, `pndm`, `lcm`, `tcd`, `euler_a`) take their own steps over the
  levels that `EulerDiscreteScheduler` visits: their table is exchanged for one of those levels alone;
* `dpmpp_2s_a` and `dpmpp_3m_sde` are k-diffusion's functions, run in a thread that the pipeline's steps answer;
* the Brownian path of `dpmpp_sde` is drawn from the pictures' own generators, change by change.
"""

import functools
import queue
import sys
import threading
from pathlib import Path

import numpy as np
import torch
from diffusers import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler
from diffusers.schedulers import scheduling_dpmsolver_sde
from diffusers.utils.torch_utils import randn_tensor

sys.path.insert(0, str(Path(__file__).parent.parent / "fixtures" / "samplers"))
import make_samplers  # noqa: E402

SAMPLERS = list(make_samplers.KINDS)
SCHEDULES = ["default", *make_samplers.WISHES, *make_samplers.COMFY]
# Of the classes that have no option for a sigma schedule.
WITHOUT_LEVELS = ("ddpm", "ddim", "pndm", "lcm", "tcd")


def origin(sampler, schedule):
    """Whose the pair is, in a word."""
    if sampler in make_samplers.K_DIFFUSION:
        return "k-diffusion"
    if schedule == "default" or (schedule in make_samplers.WISHES and sampler not in (*WITHOUT_LEVELS, "euler_a")):
        return "diffusers"
    return "made"


def scheduler(sampler, config, schedule, steps, generators):
    """`config`: the checkpoint's own, as its pipeline has it. `generators`: one a picture."""
    if sampler in make_samplers.K_DIFFUSION:
        return walked(sampler, config, schedule, generators)
    cls = class_of(sampler)
    if schedule != "default" and sampler == "euler_a":
        return EulerAncestralOverLevels.of(config, schedule)
    if schedule != "default" and sampler in WITHOUT_LEVELS:
        return over_levels(cls, config, schedule, steps)
    if sampler == "dpmpp_sde":
        path = lambda x, *_: make_samplers.BrownianPath(lambda: randn_tensor(x.shape, generators, dtype=x.dtype))
        scheduling_dpmsolver_sde.BrownianTreeNoiseSampler = path
    return with_levels(cls, config, schedule, make_samplers.OPTIONS.get(sampler, {}))


def has_double_coefficients(sampler, schedule):
    """Of classes that divide by differences of levels' logarithms, over levels that diffusers has not, and of which the first are 1 %
    apart: coefficients in single precision are off there by what pictures show."""
    return schedule == "linear_quadratic" and sampler in ("unipc", "deis")


def in_double(sampler, scheduler):
    """For the length of a `with`: the class's own code in double precision, as make_samplers.py runs it."""
    for table in ("alphas_cumprod", "final_alpha_cumprod", "one"):
        if hasattr(scheduler, table):
            setattr(scheduler, table, getattr(scheduler, table).double())
    make_samplers.unround(scheduler)
    numpy = make_samplers.DoubleNumpy("np")
    numpy.table = len(scheduler.alphas_cumprod)
    return make_samplers.Patched(make_samplers.KINDS[sampler][0], torch=make_samplers.DoubleTorch("torch"), np=numpy)


def class_of(sampler):
    module, name = make_samplers.KINDS[sampler]
    return getattr(module, name)


def with_levels(cls, config, schedule, options=None):
    """A class that reads `use_karras_sigmas`."""
    key = {} if schedule == "default" else {make_samplers.WISHES.get(schedule, "use_karras_sigmas"): True}
    made = cls.from_config(config, **key, **(options or {}))
    if schedule in make_samplers.COMFY:
        visit(made, schedule)
        if cls is class_of("deis"):
            ends_as_by_default(made)
    return made


def visit(scheduler, schedule):
    """Puts one of ComfyUI's schedules in the place of the class's Karras levels.

    Some of its levels lie halfway between two timesteps (`sgm_uniform` in 6 steps: 832.5 and 499.5). Where a class rounds them, the
    last bit of a logarithm in float32 decides, and numpy's is not the same on all processors. So levels and logarithms are taken
    from the table in double precision here.
    """
    shares = scheduler.alphas_cumprod.double().numpy()
    table = ((1 - shares) / shares) ** 0.5
    logarithms = np.log(table.astype(np.float32).astype(float)).astype(np.float32)
    of_sigma = scheduler._sigma_to_t
    scheduler._sigma_to_t = lambda sigma, _logarithms: of_sigma(sigma, logarithms)

    def convert(in_sigmas, num_inference_steps=None):
        return np.array(make_samplers.comfy_sigmas(schedule, table, num_inference_steps or scheduler.num_inference_steps))

    scheduler._convert_to_karras = convert


def ends_as_by_default(scheduler):
    """DEIS's class repeats the last level of a schedule of its own; ComfyUI's end where the class's own spacing does."""
    set_timesteps = scheduler.set_timesteps

    def set_and_end(*args, **kwargs):
        set_timesteps(*args, **kwargs)
        scheduler.sigmas[-1] = float((1 - scheduler.alphas_cumprod[0]) / scheduler.alphas_cumprod[0]) ** 0.5

    scheduler.set_timesteps = set_and_end


class EulerAncestralOverLevels(EulerAncestralDiscreteScheduler):
    @classmethod
    def of(cls, config, schedule):
        made = cls.from_config(config)
        made.euler = with_levels(EulerDiscreteScheduler, config, schedule)
        return made

    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps, device)
        self.euler.set_timesteps(num_inference_steps)
        self.sigmas, self.timesteps = self.euler.sigmas, self.euler.timesteps


def over_levels(cls, config, schedule, steps):
    """An object of a class that looks levels up in its table by whole timesteps. The table has the visited levels alone, and
    below them, as entry 0, the first of the training's; the network is told the timesteps that the levels stand for."""
    euler = with_levels(EulerDiscreteScheduler, config, schedule)
    euler.set_timesteps(steps)

    class OverLevels(cls):
        def set_timesteps(self, num_inference_steps, device=None, **_options):
            super().set_timesteps(num_inference_steps, device)
            shares = 1 / (euler.sigmas[:-1].double() ** 2 + 1)
            self.alphas_cumprod = torch.cat([euler.alphas_cumprod[:1].double(), shares.flip(0)]).to(self.alphas_cumprod.dtype)
            places = list(range(num_inference_steps, 0, -1))
            # PNDM's list has the second level twice.
            places = places[:2] + places[1:] if len(self.timesteps) > num_inference_steps else places
            self.places, self.told, self.taken = torch.tensor(places), euler.timesteps[num_inference_steps - np.array(places)], 0
            self.timesteps = self.told

        @functools.wraps(cls.step)
        def step(self, model_output, timestep, sample, **options):
            self.timesteps = self.places
            made = cls.step(self, model_output, self.places[self.taken], sample, **options)
            self.timesteps, self.taken = self.told, self.taken + 1
            return made

        def get_scalings_for_boundary_condition_discrete(self, _timestep):
            return cls.get_scalings_for_boundary_condition_discrete(self, self.told[self.taken])

        def previous_timestep(self, timestep):
            # Below the lowest visited level nothing is left of the noise; entry 0 is TCD's alone.
            return timestep - 1 if timestep > 1 else torch.tensor(-1)

        def add_noise(self, original_samples, noise, timesteps):
            raise NotImplementedError

    table = {"num_train_timesteps": steps + 1, "original_inference_steps": steps, "timestep_spacing": "leading", "steps_offset": 0,
             "set_alpha_to_one": True, "skip_prk_steps": True}
    made = OverLevels.from_config(config, **table)
    if cls in (class_of("ddim"), class_of("pndm")):
        # They lead a stride back, to entry 0 in the last step.
        ends_without_noise(made)
    return made


def ends_without_noise(scheduler):
    set_timesteps = scheduler.set_timesteps

    def set_and_end(*args, **kwargs):
        set_timesteps(*args, **kwargs)
        scheduler.alphas_cumprod[0] = 1.0

    scheduler.set_timesteps = set_and_end


class Walk:
    """One of k-diffusion's functions, which calls for the network, turned inside out."""

    def __init__(self, function, x, sigmas, noise):
        self.asked, self.answered = queue.Queue(), queue.Queue()

        def denoiser(x, _sigma):
            self.asked.put(x)
            return self.answered.get()

        def run():
            try:
                with torch.no_grad():
                    self.asked.put(function(denoiser, x, sigmas, disable=True, noise_sampler=noise))
            except Exception as error:  # told where it is awaited
                self.asked.put(error)

        threading.Thread(target=run, daemon=True).start()
        self.next()

    def next(self):
        x = self.asked.get()
        if isinstance(x, Exception):
            raise x
        return x

    def answer(self, denoised):
        self.answered.put(denoised)
        return self.next()


def walked(sampler, config, schedule, generators):
    """k-diffusion's function over the levels of diffusers' Euler class."""
    sampling = make_samplers.k_diffusion_sampling()
    function = {"dpmpp_2s_a": sampling.sample_dpmpp_2s_ancestral, "dpmpp_3m_sde": sampling.sample_dpmpp_3m_sde}[sampler]

    class Walked(EulerDiscreteScheduler):
        def set_timesteps(self, num_inference_steps, device=None, **_options):
            super().set_timesteps(num_inference_steps)
            self.seen, self.walk, self.taken = [], None, 0

            def denoiser(x, sigma):
                self.seen.append(sigma.flatten()[0])
                return x

            still = torch.ones(1, 1, dtype=self.sigmas.dtype)
            function(denoiser, still, self.sigmas, disable=True, noise_sampler=lambda *_: torch.zeros_like(still))
            levels = dict(zip(map(float, self.sigmas), self.timesteps))
            table = np.log(np.array(((1 - self.alphas_cumprod) / self.alphas_cumprod) ** 0.5))
            between = lambda sigma: torch.tensor(self._sigma_to_t(np.array(float(sigma)), table))
            # A step begins at a level, whose timestep is known; dpmpp_2s_a's second evaluation is told by its sigma alone.
            begins = [sampler != "dpmpp_2s_a" or index % 2 == 0 for index in range(len(self.seen))]
            told = [levels[float(sigma)] if at else between(sigma) for sigma, at in zip(self.seen, begins)]
            self.timesteps = torch.tensor([float(t) for t in told], dtype=torch.float32)

        def scale_model_input(self, sample, timestep):
            return sample / (self.seen[self.taken] ** 2 + 1) ** 0.5

        def step(self, model_output, timestep, sample, return_dict=True):
            if self.walk is None:
                noise = lambda *_: randn_tensor(sample.shape, generators, dtype=sample.dtype)
                self.walk = Walk(function, sample, self.sigmas.to(sample.dtype), noise)
            sigma = self.seen[self.taken]
            self.taken += 1
            if self.config.prediction_type == "epsilon":
                denoised = sample - sigma * model_output
            else:
                denoised = model_output * (-sigma / (sigma**2 + 1) ** 0.5) + sample / (sigma**2 + 1)
            return (self.walk.answer(denoised),)

    return with_levels(Walked, config, schedule)
