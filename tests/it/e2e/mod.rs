//! The binary itself, as an operator runs it: started, killed, drained, given bad files. Every wait is for something the
//! server says (a line, an event, its end), with a deadline against hanging for ever.

mod bench;
mod command_line;
mod crash;
mod drain;
mod faults;
mod keys;
mod models;
mod page;
mod page_key;
mod page_pictures;
mod pull;
mod readme;
mod server;
mod workers;
