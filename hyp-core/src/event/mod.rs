//! Events: how a domain is told that something has happened (`event_channel.h`, two-level ABI).

pub mod upcall;
