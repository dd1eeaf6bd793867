//! Small domains, built by the real domain builder.

use hyp_core::Hypervisor;
use hyp_core::domain::builder::Plan;
use hyp_core::fake::kernel;

use crate::format::Hardware;
use crate::hardware::content::{self, FRAMES};
use crate::machine::Model;
use crate::spec::vcpus::VCPUS;

/// Frames of a domain when it starts: the kernel's, the P2M, the start-info page, tables, a stack, and a dozen to play with.
pub const PAGES: u64 = 32;

/// A domain, as the builder has left it.
pub struct Built {
    /// Its number.
    pub number: usize,
    /// Places of its frames, by pseudo-physical number.
    pub p2m: Vec<usize>,
    /// Place of its root.
    pub root: usize,
    /// Place of the page that it shares with the hypervisor.
    pub shared: usize,
    /// Place of the page with its console's ring, if it has one.
    pub console: Option<usize>,
}

/// Builds a domain; `None` when the machine has no room for it.
pub fn build<F: Hardware>(hypervisor: &'static Hypervisor<Model<F>>, control: bool) -> Option<Built> {
    let file = kernel::image_at(F::address(0), 4096);
    let plan = Plan { kernel: &file, ramdisk: b"", arguments: "", pages: PAGES, control };
    let domain = hypervisor.build_domain(&plan).ok()?;
    domain.set_vcpu_count(VCPUS as u8);
    let frames = hypervisor.frames();
    let mut p2m = vec![usize::MAX; PAGES as usize];
    for at in 0..FRAMES {
        let owner = frames.hold(content::frame(at)).and_then(|hold| hold.owner);
        let name = frames.m2p().and_then(|m2p| m2p.get(content::frame(at)));
        if let Some(name) = name.filter(|_| owner == Some(domain.id())) {
            p2m[name.number() as usize] = at;
        }
    }
    Some(Built {
        number: usize::from(domain.id().number()),
        p2m,
        root: content::slot(domain.vcpus.first()?.kernel_root()?.number())?,
        shared: content::slot(domain.shared_info()?.number())?,
        console: domain.console_page().and_then(|frame| content::slot(frame.number())),
    })
}
