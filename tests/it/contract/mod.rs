//! One suite a trait, run by every implementation, and the builders the suites share.

/// Each of a suite's tests on each store.
macro_rules! for_every_store {
    ($($test:ident,)+) => {
        for_every_store!(@ memory; OPTIONS; $($test,)+);
        for_every_store!(@ sqlite; OPTIONS; $($test,)+);
    };
    // With options of its own.
    (of $options:ident(): $($test:ident,)+) => {
        for_every_store!(@ memory; $options(); $($test,)+);
        for_every_store!(@ sqlite; $options(); $($test,)+);
    };
    (@ $store:ident; $options:expr; $($test:ident,)+) => {
        mod $store {
            use super::*;

            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
                async fn $test() {
                    super::$test(super::Bed::$store($options).await).await;
                }
            )+
        }
    };
}

mod artifacts;
mod event_bus;
#[path = "../../../benches/support/jobs.rs"]
mod jobs;

mod job_store;
mod job_store_bed;
mod job_store_claims;
mod job_store_deadlines;
mod job_store_files;
mod job_store_identical;
mod job_store_shares;
mod job_store_work;
mod preparing;
mod sharing;
mod streams;
mod watchdog;
mod workers;

use jobs::{model, request};
