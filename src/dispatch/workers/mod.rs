//! WorkerPool: claims jobs, feeds engines, heartbeats, cancels, drains, survives panics.
