//! The one integration test binary. Each module says what it holds to account.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails; its helpers are tests too")]

// The HTTP API, through a whole app on a real socket.
mod api;
// Who may import whom, and which crates stay in which rooms.
mod architecture;
// One suite a trait, run by every implementation.
mod contract;
// The binary itself: serve, kill, restart, generate.
mod e2e;
// The step loop: batches, cancels, failures, and that a batch never changes a picture.
mod engine;
// Readers of foreign bytes against bytes that nobody would send in good faith.
mod fuzz;
// Numbers against the reference implementation, stage by stage.
mod golden;
// openapi.yaml is what the code says.
mod openapi;
// TestApp and builders.
mod support;
