//! The core on the fake machine, as guests and the control domain use it: one file for each thing that it does.
//!
//! They are one program, since each program costs a build of the whole core over the fake machine, and a link.

#[path = "../common/mod.rs"]
mod common;

mod at_once;
mod attacks;
mod auditor;
mod charges;
mod console;
mod control;
mod defects;
mod domains;
mod events;
mod frames;
mod grants;
mod hooking;
mod kernel_notes;
mod memory;
mod mmuext;
mod model;
mod nonsense;
mod paging;
mod published;
mod results;
mod rights;
mod roots;
mod rows;
mod start_of_day;
mod superpages;
mod type_changes;
mod vcpus;
mod versions;
mod vm_assist;
mod writable;
