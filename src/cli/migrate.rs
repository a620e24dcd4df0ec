//! `darkroom migrate`

use super::say;
use crate::app;
use crate::config::Settings;

pub(super) async fn migrate(settings: Settings) -> Result<(), String> {
    app::migrate(&settings).await?;
    say(format!("the database in {} is up to date", settings.data_dir.display()))
}
