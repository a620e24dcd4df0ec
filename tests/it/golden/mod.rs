//! Numbers against the reference implementation, stage by stage.

// PyTorch's CPU noise, bit for bit.
mod noise;

// Levels and trajectories of every sampler.
mod networks;
mod samplers;

// Whole pictures, per sampler.
mod pipeline;
