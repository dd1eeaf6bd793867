//! The parts of the x86-64 backend that are pure: they touch no hardware, hold no unsafe code, and are tested on the host.
//!
//! - [`format`]: the page-table format, which entries a guest may have;
//! - [`l1tf`]: which absent entries a guest may have, where the processor reads through them;
//! - [`control`]: control registers;
//! - [`page_size`]: which superpages a guest may have, where a change of page size stops the machine;
//! - [`layout`]: who owns which virtual addresses;
//! - [`decode`]: the few instructions that are carried out for a guest;
//! - [`cpuid`]: what guests hear of the processor;
//! - [`cpuid_faults`]: how a processor is told to ask the hypervisor;
//! - [`debug_registers`]: what guests may write to their debug registers;
//! - [`hypercall_page`]: code that issues hypercalls for a guest;
//! - [`ram`]: which machine memory there is;
//! - [`table_write`]: the instructions by which guests write to their tables, and what they do;
//! - [`descriptor_tables`]: the frames of a guest's descriptors;
//! - [`segment`]: which segment descriptors a guest may have;
//! - [`selector`]: which segment selectors a guest gets back after another ran.
//!
//! The rest of the backend is the program `hyp-x86`, which exists on the bare machine only.
#![no_std]
#![forbid(unsafe_code)]

pub mod control;
pub mod cpuid;
pub mod cpuid_faults;
pub mod debug_registers;
pub mod decode;
pub mod descriptor_tables;
pub mod format;
pub mod hypercall_page;
pub mod l1tf;
pub mod layout;
pub mod page_size;
pub mod ram;
pub mod segment;
pub mod selector;
pub mod table_write;
