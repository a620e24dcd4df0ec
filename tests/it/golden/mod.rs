//! Numbers against the reference implementation, stage by stage.

// PyTorch's CPU noise, bit for bit.
mod noise;

// Every network against diffusers and transformers, and the autoencoder against candle-transformers.
mod cross_check;
mod networks;

// Stable Diffusion XL, its refiner and Turbo, SD-Turbo, latent consistency and inpainting checkpoints.
mod families;

// Whole pictures that start from a picture, with and without a mask.
mod image_to_image;

// Pictures of two passes, the second larger.
mod hires;

// ControlNets, alone and in whole pictures.
mod controlnets;

// Stable Diffusion XL from a picture, with a second pass, and handed over to its refiner.
mod xl;

// Networks of full size, from files that a person makes.
mod full_size;

// Last latents, from files that a script makes.
mod parity;
// Autoencoders on large pictures.
mod large_pictures;

// Tiny autoencoders, in the autoencoder's place and for previews.
mod tiny_autoencoder;

// Pictures that clients send.
mod images;
pub(crate) use images::crc32;

// Levels and trajectories of every sampler.
mod samplers;

// Whole pictures, per sampler.
mod pipeline;

// The same weights in one file, in shards, in variants, with another autoencoder.
mod single_files;

// Denoising networks in f16 and bf16.
mod half_precision;

// What is told of a model that is not loaded.
mod introduced;

// What a request says besides: guidance in detail, noise.
mod conditioning;

// Textual inversion embeddings.
mod embeddings;

// LoRAs and their kin, in every style of file.
mod loras;
