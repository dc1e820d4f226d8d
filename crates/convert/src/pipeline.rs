//! Pieces of a file: made on all cores, written in order by the caller's thread while the next ones are made.
//!
//! At most two batches are in memory. Which core makes a piece, and when, has no influence on what is written.

use rayon::prelude::*;

/// Calls `make` for each piece (it finds an old piece in the buffer), and `write` with each in order.
///
/// # Errors
/// The first of `write`, else of `make`.
pub(crate) fn pipelined<E: Send>(
    count: usize,
    make: impl Fn(usize, &mut Vec<u8>) -> Result<(), E> + Sync,
    mut write: impl FnMut(usize, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let batch = rayon::current_num_threads().max(1);
    let buffers = || (0..batch.min(count)).map(|_| Vec::new()).collect::<Vec<_>>();
    let (mut ready, mut next) = (buffers(), buffers());
    let mut written = 0;
    let mut made = 0;
    while written < count {
        let end = count.min(made + batch);
        let mut outcome = Ok(());
        rayon::in_place_scope(|scope| {
            let pieces = &mut next[..end - made];
            scope.spawn(|_| {
                let pieces = pieces.par_iter_mut().enumerate();
                outcome = pieces.try_for_each(|(index, piece)| make(made + index, piece));
            });
            (written..made).zip(&ready).try_for_each(|(index, piece)| write(index, piece))
        })?;
        outcome?;
        (written, made) = (made, end);
        std::mem::swap(&mut ready, &mut next);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_is_written_once_and_in_order() {
        for count in [0, 1, 2, 3, 7, 64] {
            let mut all = Vec::new();
            let make = |index: usize, piece: &mut Vec<u8>| {
                piece.clear();
                piece.push(index as u8);
                Ok::<_, ()>(())
            };
            let write = |index: usize, piece: &[u8]| {
                assert_eq!(piece, [index as u8]);
                all.push(index);
                Ok(())
            };
            pipelined(count, make, write).unwrap();
            assert!(all.iter().copied().eq(0..count), "{all:?}");
        }
    }

    #[test]
    fn errors_end_the_work() {
        let mut written = 0;
        let make = |index: usize, _: &mut Vec<u8>| if index == 40 { Err("made") } else { Ok(()) };
        let count = |_: usize, _: &[u8]| {
            written += 1;
            Ok(())
        };
        assert_eq!(pipelined(1000, make, count), Err("made"));
        assert!(written <= 40, "{written}");
        let write = |index: usize, _: &[u8]| if index == 3 { Err("written") } else { Ok(()) };
        assert_eq!(pipelined(1000, |_, _| Ok(()), write), Err("written"));
    }
}
