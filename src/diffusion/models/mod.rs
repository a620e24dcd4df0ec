//! Networks, tensors in and out; built from each checkpoint's own config.json. No sampling, no text, no pictures.
