//! Arithmetic of read windows: which whole blocks a slice needs, and where they land in a slot. No memory, no files.
//!
//! GGUF aligns tensors to 32 bytes, direct I/O wants whole blocks. So a slice is read as the window of blocks around it,
//! straight into its slot, and starts there at `offset % block` of its window: no bounce copy. Windows start on pages.

use crate::MAX_SLICES;

/// Windows start on multiples of this in a slot: no block size of a device is larger, and pages are whole for it.
pub(crate) const WINDOW_ALIGNMENT: usize = 4096;

/// A byte range of a file: one projection of one expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Which of the [`crate::Files`].
    pub file: usize,
    /// First byte in the file.
    pub offset: u64,
    /// Length.
    pub bytes: usize,
}

/// The blocks around a slice, cut at the end of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// First byte in the file, a multiple of the block.
    pub(crate) offset: u64,
    /// Up to here whole blocks are read.
    pub(crate) blocks_end: u64,
    /// End in the file; what lies between `blocks_end` and here is the file's tail, shorter than a block.
    pub(crate) end: u64,
    /// Where the slice starts in the window.
    pub(crate) skip: usize,
}

impl Window {
    /// The window of `slice` in a file of `file_bytes` that holds it whole.
    pub(crate) fn around(slice: &Slice, block: usize, file_bytes: u64) -> Window {
        let block = block as u64;
        let offset = slice.offset / block * block;
        let slice_end = slice.offset + slice.bytes as u64;
        let last_block = file_bytes / block * block;
        let blocks_end = slice_end.next_multiple_of(block).min(last_block).max(offset);
        Window { offset, blocks_end, end: blocks_end.max(slice_end), skip: (slice.offset - offset) as usize }
    }

    pub(crate) fn bytes(&self) -> usize {
        (self.end - self.offset) as usize
    }
}

/// Bytes of a slot that takes slices of these lengths wherever they lie in a file: each with the blocks at its ends.
///
/// # Panics
/// More than [`MAX_SLICES`] slices.
#[must_use]
pub fn slot_bytes(slices: &[usize], block_bytes: usize) -> usize {
    assert!(slices.len() <= MAX_SLICES, "{} slices, at most {MAX_SLICES}", slices.len());
    // The slice starts at most block - 1 bytes into the window.
    slices.iter().map(|bytes| (bytes + block_bytes - 1).next_multiple_of(block_bytes)).map(page_rounded).sum()
}

/// Where the next window of a slot starts after one of `bytes`.
pub(crate) fn page_rounded(bytes: usize) -> usize {
    bytes.next_multiple_of(WINDOW_ALIGNMENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_whole_blocks_around_the_slice_and_fits_the_slot() {
        let file_bytes = 5 * 4096 + 100;
        for block in [512, 4096] {
            for offset in (0..file_bytes).step_by(32) {
                for bytes in [1, 31, 32, 512, 4096, 4097, 9000] {
                    if offset + bytes as u64 > file_bytes {
                        continue;
                    }
                    let slice = Slice { file: 0, offset, bytes };
                    let window = Window::around(&slice, block, file_bytes);
                    assert_eq!(window.offset % block as u64, 0);
                    assert_eq!(window.blocks_end % block as u64, 0);
                    assert!(window.blocks_end <= file_bytes && window.end <= file_bytes);
                    assert_eq!(window.offset + window.skip as u64, offset);
                    assert!(window.skip < block);
                    assert!(window.end >= offset + bytes as u64);
                    assert!(window.end - window.blocks_end < block as u64);
                    assert!(page_rounded(window.bytes()) <= slot_bytes(&[bytes], block), "{slice:?} {block}");
                }
            }
        }
    }

    #[test]
    fn only_the_tail_of_the_file_is_read_without_rounding() {
        let tail = Window::around(&Slice { file: 0, offset: 8200, bytes: 90 }, 4096, 8300);
        assert_eq!((tail.offset, tail.blocks_end, tail.end, tail.skip), (8192, 8192, 8290, 8));
        let both = Window::around(&Slice { file: 0, offset: 100, bytes: 8200 }, 4096, 8300);
        assert_eq!((both.offset, both.blocks_end, both.end, both.skip), (0, 8192, 8300, 100));
    }

    #[test]
    fn the_slack_of_three_slices_is_at_most_two_blocks_and_a_page_each() {
        let bytes = slot_bytes(&[1_622_016; 3], 512);
        assert!((3 * 1_622_016..=3 * (1_622_016 + 2 * 4096)).contains(&bytes), "{bytes}");
        assert_eq!(slot_bytes(&[], 4096), 0);
    }
}
