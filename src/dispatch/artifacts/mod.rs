//! Stores pictures by job and index, over the `object_store` crate: memory or filesystem.
