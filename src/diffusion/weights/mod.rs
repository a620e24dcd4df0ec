//! Checkpoint files to tensors: diffusers folders and the embedded model; names as they stand in the checkpoint.
