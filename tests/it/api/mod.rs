//! The HTTP API, through a whole app on a real socket.

// What is refused, and how.
mod bad_input;
// Models that come and go.
mod collection;
mod continuous;
mod deadlines;
// Jobs from submit to end.
mod jobs;
// Who may ask, and whose jobs they see.
mod keys;
// Pictures that come with requests.
mod controls;
mod estimates;
mod image_inputs;
// Pictures and their representations.
mod images;
// Health, metrics, documents.
mod operations;
// LoRAs by name, and in A1111's words.
mod loras;
// What a picture's file says of it.
mod parameters;
// Two models that draw one picture.
mod refiner;
// Identical requests.
mod reuse;
// Who gets how much of the devices.
mod shares;
// Everything at once, for long.
mod soak;
// Server-sent events.
mod streams;
