//! The one way in: submit, get, cancel, subscribe, artifact. Every front door goes through it.
