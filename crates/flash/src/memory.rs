//! An anonymous, zeroed memory region for weights: page aligned, on huge pages where the system gives them.
//!
//! Dense weights and expert slots live in such regions, so that the system cannot drop them as it drops page cache. A region
//! is reserved once, never grows and never moves.

use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Regions of this size and more are aligned to it, so that huge pages fit.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Pages are this large or larger everywhere.
const SMALLEST_PAGE_BYTES: usize = 4096;

/// An anonymous memory region, readable and writable as a byte slice.
#[derive(Debug)]
pub struct Memory {
    mapping: NonNull<u8>,
    mapping_bytes: usize,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the region belongs to this value alone and has no thread affinity.
unsafe impl Send for Memory {}
// SAFETY: shared access is read-only, through `&[u8]`.
unsafe impl Sync for Memory {}

impl Memory {
    /// Reserves `bytes` bytes of zeroed memory and asks for huge pages.
    ///
    /// # Errors
    /// The system refuses the reservation.
    pub fn reserve(bytes: usize) -> io::Result<Memory> {
        if bytes == 0 {
            return Ok(Memory { mapping: NonNull::dangling(), mapping_bytes: 0, start: NonNull::dangling(), bytes: 0 });
        }
        let slack = if bytes >= HUGE_PAGE_BYTES { HUGE_PAGE_BYTES } else { 0 };
        let mapping_bytes = bytes.checked_add(slack).ok_or(io::ErrorKind::OutOfMemory)?;
        let protection = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE;
        // SAFETY: a fresh private mapping at an address of the system's choice touches no existing memory.
        let address = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                mapping_bytes,
                protection,
                rustix::mm::MapFlags::PRIVATE | rustix::mm::MapFlags::NORESERVE,
            )
        }?;
        let mapping = NonNull::new(address.cast::<u8>()).expect("mmap never returns the null page");
        let padding = if slack == 0 { 0 } else { mapping.as_ptr().align_offset(HUGE_PAGE_BYTES) };
        // SAFETY: padding < HUGE_PAGE_BYTES = slack, so the start and `bytes` behind it stay inside the mapping.
        let start = unsafe { mapping.add(padding) };
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if slack != 0 {
            // SAFETY: the range lies inside our own mapping; the advice changes no contents. A refusal only costs speed.
            let _ = unsafe { rustix::mm::madvise(start.as_ptr().cast(), bytes, rustix::mm::Advice::LinuxHugepage) };
        }
        Ok(Memory { mapping, mapping_bytes, start, bytes })
    }

    /// Makes the system give all pages now, so that resident memory does not depend on how far a run gets. Contents stay.
    ///
    /// # Errors
    /// The system has no memory for them.
    pub fn populate(&mut self) -> io::Result<()> {
        if self.bytes == 0 {
            return Ok(());
        }
        #[cfg(any(target_os = "linux", target_os = "android"))]
        {
            let advice = rustix::mm::Advice::LinuxPopulateWrite;
            // SAFETY: the range lies inside our own mapping, from a page's start; populating changes no contents.
            match unsafe { rustix::mm::madvise(self.start.as_ptr().cast(), self.bytes, advice) } {
                // Systems before Linux 5.14 don't know the advice.
                Err(rustix::io::Errno::INVAL) => {}
                other => return other.map_err(io::Error::from),
            }
        }
        for offset in (0..self.bytes).step_by(SMALLEST_PAGE_BYTES) {
            // SAFETY: offset < bytes, and `&mut self` makes the access exclusive. Volatile, so that writing back what was
            // read is not left out.
            unsafe {
                let byte = self.start.add(offset).as_ptr();
                byte.write_volatile(byte.read_volatile());
            }
        }
        Ok(())
    }

    /// The first byte, without a reference to the whole: for the arena, parts of whose memory are written by devices.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.mapping_bytes > 0 {
            // SAFETY: the mapping was made by `reserve` with this address and length, and nothing borrows it any more.
            let unmapped = unsafe { rustix::mm::munmap(self.mapping.as_ptr().cast(), self.mapping_bytes) };
            debug_assert!(unmapped.is_ok());
        }
    }
}

impl Deref for Memory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is valid for `bytes` initialised (zero-filled) bytes for as long as `self` lives.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_zeroed_aligned_and_writable() {
        for bytes in [1, 4096, HUGE_PAGE_BYTES, 3 * HUGE_PAGE_BYTES + 17] {
            let mut memory = Memory::reserve(bytes).unwrap();
            assert_eq!(memory.len(), bytes);
            memory.populate().unwrap();
            assert!(memory.iter().all(|&byte| byte == 0));
            let alignment = if bytes >= HUGE_PAGE_BYTES { HUGE_PAGE_BYTES } else { 4096 };
            assert_eq!(memory.as_ptr().align_offset(alignment), 0);
            memory[bytes - 1] = 7;
            assert_eq!(memory[bytes - 1], 7);
        }
        assert!(Memory::reserve(0).unwrap().is_empty());
    }
}
