//! The program that the workload `exec` and the benchmark start again and again: it answers the number that it is given by an exit status.
//!
//! As small as a static program gets. It begins at the C library's `main`: what a program in Rust does before its own would be most of what it
//! does, and nothing that a kernel is measured by.
#![no_main]

use std::ffi::{c_char, c_int};

#[path = "../status.rs"]
mod status;

/// The most digits of a number.
const DIGITS: usize = 9;

/// 255 is no answer: there was no number.
#[unsafe(no_mangle)]
extern "C" fn main(count: c_int, words: *const *const c_char) -> c_int {
    if count != 2 {
        return 255;
    }
    // SAFETY: of `count` words, this is the second; each is a string that ends with a zero.
    let digits = |at: usize| unsafe { (*words.add(1)).add(at).read() } as u8;
    let mut number = 0;
    for at in 0..=DIGITS {
        match digits(at) {
            0 if at > 0 => return c_int::from(status::of(number)),
            digit @ b'0'..=b'9' if at < DIGITS => number = number * 10 + u32::from(digit - b'0'),
            _ => break,
        }
    }
    255
}
