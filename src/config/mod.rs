//! Settings: one struct per room; defaults < file < environment < flags; every fault reported at once. Reads no database
//! and opens no port.

mod hub;
mod keys;
mod load;
mod model_file;
mod settings;

pub use hub::{HubSettings, Token};
pub use keys::KeySettings;
pub use load::{Fault, Overrides, load};
pub use model_file::{CardOverrides, DefaultOverrides, ModelFile, ScheduleOverrides};
pub use settings::{LogSettings, ModelSettings, QueueSettings, ServerSettings, Settings, WorkerSettings};
