//! Random numbers per sample: the generators that give a seed the meaning it has elsewhere. No tensors.
