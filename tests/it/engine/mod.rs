//! The local engine, for real: processes, mounts, sockets. Most run as whoever runs the tests; what needs root says so.

mod lifecycle;
mod support;
