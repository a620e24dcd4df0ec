//! The HTTP API, through a whole app on a real socket.

// What is refused, and how.
mod bad_input;
mod continuous;
mod deadlines;
// Jobs from submit to end.
mod jobs;
// Pictures that come with requests.
mod controls;
mod image_inputs;
// Pictures and their representations.
mod images;
// Health, metrics, documents.
mod operations;
// Two models that draw one picture.
mod refiner;
// What a picture's file says of it.
mod parameters;
// Server-sent events.
mod streams;
