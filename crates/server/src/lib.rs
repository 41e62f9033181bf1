//! Who asks, and how? A database served over Arrow Flight SQL, and a client of such servers.
//!
//! [`serve`] answers the calls of Flight SQL clients: `service` takes each call apart and finds out who makes it
//! (`authentication`, `sessions`), `statements`, `prepared`, `ingest`, `poll` and `catalog` answer it, `seal` and
//! `travel` make handles that every server of the database can go on with, `wire` puts rows into
//! messages. What SQL means and how it runs is the engine's. Beside them: `http`, `metrics` and `telemetry` tell how the server
//! fares.

mod actions;
mod admission;
mod authentication;
mod catalog;
mod certificate;
mod client;
mod core;
mod do_get;
mod handles;
pub mod http;
mod ingest;
mod intake;
mod messages;
pub mod metrics;
mod options;
mod poll;
mod prepared;
mod record_batch;
mod redeem;
mod seal;
mod serve;
mod service;
mod session_options;
mod sessions;
mod sql_info;
mod statements;
mod status;
pub mod telemetry;
mod travel;
mod type_info;
mod updates;
mod wire;

pub use client::{Client, ConnectOptions};
pub use http::{Addresses, Readiness};
pub use metrics::Metrics;
pub use options::{HTTP_PORT, Limits, PORT, ServerOptions, TlsOptions};
pub use serve::{bind, serve, serve_on};
pub use telemetry::{LogFormat, LogOptions};
