//! Published flaws in the same mechanisms, tried on the fake machine: each test does what the attacker did, and then looks at what
//! was won, by the auditor's recount and by an observer that walks from every loaded root with no code of the core's.
//!
//! `docs/attacks.md` lists all of them, with those that stand beside the mechanism they are about.

mod calls;
mod fast_paths;
mod half_way;
mod references;
mod ways;
