//! Attacks: what published flaws of Xen let a guest do, tried from inside a guest with real hypercalls.
//!
//! Each attack is named after the flaw (docs/attacks.md lists them all, with the other tests that stand against them) and has a
//! test's line of its own; after each, all pages must be back and the audit must find nothing. A hypervisor that has the flaw either
//! says yes where no is expected, or the attack's last step shows the damage: a write that arrives where it mustn't, or a page that can
//! never again be what it was.
//!
//! Some rows have their guest elsewhere, since their chapter is there: grants (`grant-table`, `share`), linear tables
//! (`linear`), starts of vCPUs (`vcpus`), instructions (`instructions`), frames of others (the tour).

mod counts;
mod entries;
mod frames;
mod pointers;
mod scene;
mod translations;
mod trees;

use super::Test;
use crate::architecture::Architecture;
pub(super) use scene::{Extent, Tree};

/// The attacks, in the order of docs/attacks.md.
pub(super) fn all<A: Architecture>() -> [Test<A>; 19] {
    [
        ("attacks/xsa-148", entries::writable_superpage_over_a_table),
        ("attacks/xsa-182", entries::mapping_of_a_table_made_writable),
        ("attacks/xsa-167-176", entries::bits_of_superpages),
        ("attacks/forbidden-bits", entries::forbidden_bits),
        ("attacks/xsa-154", entries::another_memory_type),
        ("attacks/xsa-109", entries::tables_of_others),
        ("attacks/xsa-227", entries::addresses_between_entries),
        ("attacks/xsa-214-287", frames::tables_given_away),
        ("attacks/xsa-224", frames::host_and_device),
        ("attacks/xsa-242", counts::last_use_of_a_table),
        ("attacks/xsa-248", frames::every_frame_of_the_machine),
        ("attacks/xsa-252", frames::pinned_tables_given_back),
        ("attacks/xsa-280", counts::thousands_of_references),
        ("attacks/xsa-45-264-290", trees::large_trees),
        ("attacks/xsa-240", trees::tables_below_themselves),
        ("attacks/xsa-299-309-310", trees::validation_fails_half_way),
        ("attacks/xsa-241-286-292-294", translations::stale),
        ("attacks/xsa-29-212", pointers::everywhere),
        ("attacks/xsa-213", pointers::multicalls_that_change_what_they_stand_on),
    ]
}
