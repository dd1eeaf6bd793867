//! The emergency console: lengths at the edges, and reading while nobody types.

use super::check::Check;
use crate::architecture::Architecture;
use crate::guest::Guest;
use crate::hypercalls;

/// Runs the test `console`.
pub fn run<A: Architecture>(_guest: &Guest<A>, check: &mut Check<A>) {
    check.done("an empty write", hypercalls::console_write::<A>(b""));
    check.done("a line in two pieces, first", hypercalls::console_write::<A>(b"console test: one line "));
    check.done("a line in two pieces, second", hypercalls::console_write::<A>(b"in two pieces\n"));
    let mut long = [b'='; 601];
    long[600] = b'\n';
    check.done("a line longer than any buffer", hypercalls::console_write::<A>(&long));
    check.done("odd bytes", hypercalls::console_write::<A>(b"odd bytes: \x00\x01\x1b[0m\x7f\xff\n"));
    let mut buffer = [0xaa; 16];
    let count = check.done("reading while nobody types", hypercalls::console_read::<A>(&mut buffer));
    let rest = count.unwrap_or(0);
    check.that("bytes beyond those read stay", buffer[rest..].iter().all(|&byte| byte == 0xaa));
    check.done("reading nothing", hypercalls::console_read::<A>(&mut []));
}
