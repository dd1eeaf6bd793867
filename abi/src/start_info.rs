//! The start-info page (`xen.h`): what a new domain finds at its first instruction.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of the command line, with the zero byte at its end (`MAX_GUEST_CMDLINE`).
pub const MAX_GUEST_CMDLINE: usize = 1024;

/// The domain may use privileged operations.
pub const SIF_PRIVILEGED: u32 = 1 << 0;
/// The domain is the control domain.
pub const SIF_INITDOMAIN: u32 = 1 << 1;
/// `mod_start` leads to a multiboot module.
pub const SIF_MULTIBOOT_MOD: u32 = 1 << 2;
/// `mod_start` is a PFN, and the module isn't mapped.
pub const SIF_MOD_START_PFN: u32 = 1 << 3;
/// The tools understand a P2M that is mapped in the domain's own address space.
pub const SIF_VIRT_P2M_4TOOLS: u32 = 1 << 4;

/// `struct start_info`: 1168 bytes, the same on x86-64 and AArch64.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct StartInfo {
    /// `xen-<version>-<platform>` and zero bytes.
    pub magic: [u8; 32],
    /// Pages that the domain has.
    pub nr_pages: u64,
    /// *Machine address* (bytes) of the shared-info page.
    pub shared_info: u64,
    /// `SIF_*`.
    pub flags: u32,
    /// Padding that C inserts.
    pub pad0: u32,
    /// *Machine frame* of the store page. Zero for the control domain.
    pub store_mfn: u64,
    /// Event channel of the store.
    pub store_evtchn: u32,
    /// Padding that C inserts.
    pub pad1: u32,
    /// *Machine frame* of the console page. In the control domain, instead: offset from here and size of the console
    /// information, 4 bytes each.
    pub console_mfn: u64,
    /// Event channel of the console.
    pub console_evtchn: u32,
    /// Padding that C inserts.
    pub pad2: u32,
    /// *Virtual* address of the root table.
    pub pt_base: u64,
    /// Number of table frames, all mapped from `pt_base` on.
    pub nr_pt_frames: u64,
    /// *Virtual* address of the P2M: 8 bytes a page.
    pub mfn_list: u64,
    /// *Virtual* address of the module, or its PFN with [`SIF_MOD_START_PFN`]. Zero: none.
    pub mod_start: u64,
    /// Bytes of the module.
    pub mod_len: u64,
    /// The command line, ended by a zero byte.
    pub cmd_line: [u8; MAX_GUEST_CMDLINE],
    /// First PFN of the P2M's own frames, when it isn't mapped in the bootstrap region.
    pub first_p2m_pfn: u64,
    /// Number of frames of the P2M.
    pub nr_p2m_frames: u64,
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<StartInfo>() == 1168);
    assert!(offset_of!(StartInfo, nr_pages) == 32 && offset_of!(StartInfo, shared_info) == 40);
    assert!(offset_of!(StartInfo, flags) == 48 && offset_of!(StartInfo, store_mfn) == 56);
    assert!(offset_of!(StartInfo, store_evtchn) == 64 && offset_of!(StartInfo, console_mfn) == 72);
    assert!(offset_of!(StartInfo, console_evtchn) == 80 && offset_of!(StartInfo, pt_base) == 88);
    assert!(offset_of!(StartInfo, nr_pt_frames) == 96 && offset_of!(StartInfo, mfn_list) == 104);
    assert!(offset_of!(StartInfo, mod_start) == 112 && offset_of!(StartInfo, mod_len) == 120);
    assert!(offset_of!(StartInfo, cmd_line) == 128 && offset_of!(StartInfo, first_p2m_pfn) == 1152);
    assert!(offset_of!(StartInfo, nr_p2m_frames) == 1160);
};

impl StartInfo {
    /// The command line up to its first zero byte; empty when it isn't UTF-8.
    pub fn command_line(&self) -> &str {
        let length = self.cmd_line.iter().position(|&byte| byte == 0).unwrap_or(MAX_GUEST_CMDLINE);
        self.cmd_line.get(..length).and_then(|bytes| core::str::from_utf8(bytes).ok()).unwrap_or("")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn a_command_line_without_its_end_is_read_to_the_end_of_the_field() {
        let mut info = StartInfo::new_zeroed();
        assert_eq!(info.command_line(), "");
        info.cmd_line = [b'x'; MAX_GUEST_CMDLINE];
        assert_eq!(info.command_line().len(), MAX_GUEST_CMDLINE);
        info.cmd_line[4] = 0;
        assert_eq!(info.command_line(), "xxxx");
    }
}
