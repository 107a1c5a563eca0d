//! One integration binary: the real program over real sockets, files and signals, a file for each
//! promise. Nothing here sleeps to synchronise; it waits for the condition.

mod bridge;
mod http;

mod crash;
mod disk;
mod platform;
mod stop;
