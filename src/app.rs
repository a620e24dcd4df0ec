//! Composition root: Settings -> App; the only file that picks concrete stores and pipelines.
