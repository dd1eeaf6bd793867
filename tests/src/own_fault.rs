//! Faults of the hypervisor's own.
//!
//! Nothing that a guest or a person does leads to one, so they are brought about from outside, by the emulator's debugger: a machine check is
//! reported to the processor, or a register of the hypervisor's is spoilt while it idles. What it has to say must be on the serial line then,
//! whatever state the rest is in.

use crate::case::{Board, Case, Deed, End};
use crate::table::PROMPT;

/// A status that says: valid, uncorrected, enabled, with an address, the processor's context corrupt.
const MACHINE_CHECK: Deed = Deed::Monitor("mce 0 1 0xbe00000000000005 0x5 0x123456 0");
/// Nothing of the hypervisor's lies there, nor could anything.
const NOWHERE: u64 = 0x00ba_d000_0000_0000;

/// All of them. In each the control domain has nothing to do when it comes, and neither has the hypervisor.
pub fn cases(board: Board) -> Vec<Case> {
    match board {
        Board::Virt => vec![lost_instructions(board)],
        Board::Q35 => {
            vec![lost_instructions(board), machine_check(board), double_fault(board), non_maskable(board)]
        }
    }
}

/// What the hypervisor would execute next isn't there.
fn lost_instructions(board: Board) -> Case {
    let (number, says): (u8, &[&str]) = match board {
        Board::Virt => (
            32,
            &[
                "hypervisor fault: synchronous exception, ",
                "(PEN) pc 0xbad",
                "(PEN) x0 ",
                "the machine stops",
            ],
        ),
        Board::Q35 => (16, &["hypervisor fault general protection", "(PEN) cr2 ", "rip 0x00bad", "r15 "]),
    };
    dying(board, "own-fault/lost-instructions", Deed::Register { number, value: NOWHERE }, says)
}

/// The processor reports that an error has corrupted it.
fn machine_check(board: Board) -> Case {
    let says = [
        "hypervisor fault machine check: the machine stops",
        "(PEN) cr2 ",
        "rip 0x",
        "vector 0x12",
        "r15 ",
        "(PEN) machine-check status 0x5",
        "(PEN) bank 1: status 0xbe00000000000005, address 0x123456",
    ];
    dying(board, "own-fault/machine-check", MACHINE_CHECK, &says)
}

/// The stack is gone, so that no exception can be told of but by the handler that has a stack of its own.
fn double_fault(board: Board) -> Case {
    let stack = Deed::Register { number: 7, value: NOWHERE };
    let says = ["hypervisor fault double fault: the machine stops", "rip 0x", "vector 0x8", "rsp 0x00ba"];
    dying(board, "own-fault/double-fault", stack, &says)
}

/// Something happens to the hypervisor, and a key is typed, which it notices at once.
fn dying(board: Board, name: &str, deed: Deed, says: &[&'static str]) -> Case {
    // The control domain may not yet have given the CPU away.
    let idle = Deed::Await(match board {
        Board::Virt => "EL2h",
        Board::Q35 => "HLT=1",
    });
    let mut case = Case::new(board, name, "then=shell").does(PROMPT, vec![idle, deed], "\r").says(says);
    case.end = End::Stopped;
    case.forbidden.retain(|word| *word != "hypervisor fault");
    case
}

/// Non-maskable interrupts, which nobody has asked for, are no reason to stop.
fn non_maskable(board: Board) -> Case {
    // To CPU 0, as a device sends its interrupts.
    let interrupt = || Deed::Write { address: 0xfee0_0000, value: 0b100 << 8 };
    Case::new(board, "own-fault/non-maskable-interrupt", "then=shell")
        .domain("domain=guest memory=64M tour")
        .does(PROMPT, vec![interrupt()], "tour\r")
        .does("xm dmesg", vec![interrupt()], "")
        .does("TOUR: ", vec![interrupt()], "poweroff\r")
        .says(&["(d0) TOUR: PASS"])
}
