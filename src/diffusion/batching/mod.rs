//! Which evaluations share the next forward. Pure and synchronous: sees small projections of samples, never a tensor.
