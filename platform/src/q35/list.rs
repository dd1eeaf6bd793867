//! A short list of fixed capacity, for use before there is an allocator.

use core::ops::Deref;

/// The list is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// Up to `N` items, in the order in which they came.
#[derive(Clone, Copy, Debug)]
pub struct List<T, const N: usize> {
    items: [T; N],
    count: usize,
}

impl<T: Copy + Default, const N: usize> Default for List<T, N> {
    fn default() -> Self {
        Self { items: [T::default(); N], count: 0 }
    }
}

impl<T, const N: usize> List<T, N> {
    /// Adds an item at the end.
    ///
    /// # Errors
    /// [`Full`] when there are `N` already.
    pub fn push(&mut self, item: T) -> Result<(), Full> {
        let slot = self.items.get_mut(self.count).ok_or(Full)?;
        *slot = item;
        self.count += 1;
        Ok(())
    }
}

impl<T, const N: usize> Deref for List<T, N> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.items.get(..self.count).unwrap_or(&[])
    }
}
