//! A heap, while there is one.
//!
//! The hypervisor has no heap when guests run. Decoders of packed kernels need one, so while a kernel is unpacked some free memory is
//! lent to [`with`]; when it returns, nothing of the heap is left. At any other time an allocation fails, which the compiler's own code
//! turns into a panic; nothing but the decoders allocates.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{self, NonNull};

use linked_list_allocator::Heap;
use spin::Mutex;

/// The memory that is lent now, if any.
struct Lent(Mutex<Heap>);

#[global_allocator]
static HEAP: Lent = Lent(Mutex::new(Heap::empty()));

// SAFETY: `Heap` gives out blocks of what was lent to it, each as large and aligned as asked and none twice, under a lock that no
// interrupt takes. Without anything lent it has nothing to give.
unsafe impl GlobalAlloc for Lent {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.lock().allocate_first_fit(layout).map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(block) = NonNull::new(block) {
            // SAFETY: the caller promises that the block came from here, by this layout.
            unsafe { self.0.lock().deallocate(block, layout) }
        }
    }
}

/// Does something with `memory` as the heap. What is allocated meanwhile must not outlive it, which is so for what `work` gives back: it
/// may not borrow anything that begins inside.
///
/// # Safety
/// `work` leaves nothing allocated behind that is ever used again, in a static for instance; and it is called by one CPU at a time.
pub unsafe fn with<T: Copy + 'static>(memory: &mut [u8], work: impl FnOnce() -> T) -> T {
    // SAFETY: the memory is borrowed for as long as the heap has it.
    unsafe { HEAP.0.lock().init(memory.as_mut_ptr(), memory.len()) };
    let result = work();
    *HEAP.0.lock() = Heap::empty();
    result
}
