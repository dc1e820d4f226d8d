//! Every backend brings the same bytes, wherever slices lie, however reads are cut.

#![cfg(not(loom))]
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use moce_flash::{
    Arena, Direct, Error, Fetcher, Mode, Simulation, Slice, SlotClass, SlotState, Tuning, Urgency, slot_bytes,
};
use std::io::Write;
use std::sync::Arc;
use support::{Disk, Random, assert_holds, backends, in_memory, options};

const SIZES: [usize; 3] = [300_000, 4096 * 20, 1000];
const MOST: usize = 70_000;

fn arena(block_bytes: usize, count: usize) -> Arc<Arena> {
    Arc::new(Arena::reserve(&[SlotClass { bytes: slot_bytes(&[MOST; 3], block_bytes), count }]).unwrap())
}

/// Rounds of random experts into all slots at once.
fn check(fetcher: &mut Fetcher, random: &mut Random, rounds: usize) {
    let arena = fetcher.arena().clone();
    for round in 0..rounds {
        let experts: Vec<Vec<Slice>> =
            arena.slots(0).map(|_| (0..1 + random.below(3)).map(|_| random.slice(&SIZES, MOST)).collect()).collect();
        for (slot, slices) in arena.slots(0).zip(&experts) {
            let urgency = if random.below(3) == 0 { Urgency::Background } else { Urgency::Demand };
            fetcher.request(slot, slices, urgency).unwrap();
            assert_eq!(arena.state(slot), SlotState::InFlight);
        }
        fetcher.submit();
        for (slot, slices) in arena.slots(0).zip(&experts) {
            if round % 2 == 0 {
                (0..slices.len()).for_each(|slice| fetcher.wait(slot, slice).unwrap());
            } else {
                fetcher.wait_all().unwrap();
            }
            assert_holds(&arena, slot, slices);
            assert_eq!(arena.state(slot), SlotState::Filled);
        }
        assert!(fetcher.is_idle());
    }
}

#[test]
fn every_backend_reads_the_same_bytes_directly_and_buffered() {
    let disk = Disk::new(&SIZES);
    for direct in [Direct::Auto, Direct::Off] {
        let files = disk.open(direct);
        let arena = arena(files.block_bytes(), 6);
        for backend in backends(&files, &arena) {
            for (piece_bytes, depth) in [(512, 3), (4096, 32), (16 << 10, 1), (1 << 20, 64)] {
                let mut fetcher =
                    Fetcher::open(files.clone(), arena.clone(), &options(backend, piece_bytes, depth)).unwrap();
                check(&mut fetcher, &mut Random(piece_bytes as u64), 6);
            }
        }
    }
}

#[test]
fn blocks_of_any_size_give_the_same_bytes() {
    for block_bytes in [512, 1024, 4096] {
        let files = in_memory(&SIZES, block_bytes);
        let arena = arena(block_bytes, 5);
        let tuning = Tuning { piece_bytes: 8192, depth: 4 };
        let mut fetcher = Fetcher::simulated(files, arena, Simulation { jitter: 0.5, ..Simulation::default() }, tuning);
        check(&mut fetcher, &mut Random(1), 20);
    }
}

#[test]
fn direct_reads_bring_whole_blocks_and_nothing_twice() {
    let disk = Disk::new(&[1 << 20]);
    let files = disk.open(Direct::Auto);
    if files[0].mode() != &Mode::Direct {
        // Past the capture of test output.
        let _ = writeln!(std::io::stderr(), "skipped: the temporary folder is read {}", files[0].mode());
        return;
    }
    let (block, arena) = (files.block_bytes() as u64, arena(files.block_bytes(), 1));
    let slot = arena.slots(0).next().unwrap();
    for backend in backends(&files, &arena) {
        let mut fetcher = Fetcher::open(files.clone(), arena.clone(), &options(backend, 8192, 8)).unwrap();
        let slice = Slice { file: 0, offset: 3 * block + 32, bytes: 5 * block as usize };
        fetcher.request(slot, &[slice], Urgency::Demand).unwrap();
        fetcher.wait(slot, 0).unwrap();
        assert_holds(&arena, slot, &[slice]);
        assert_eq!(fetcher.stats().bytes, 6 * block, "five blocks from the middle of one lie in six");
        assert_eq!(fetcher.stats().retries, 0);
    }
}

#[test]
fn what_cannot_be_read_is_refused_before_anything_happens() {
    let files = in_memory(&SIZES, 4096);
    let arena = Arc::new(Arena::reserve(&[SlotClass { bytes: 3 * 4096, count: 2 }]).unwrap());
    let mut fetcher = Fetcher::simulated(files, arena.clone(), Simulation::default(), Tuning::default());
    let slot = arena.slots(0).next().unwrap();
    let slice = |file, offset, bytes| Slice { file, offset, bytes };
    for outside in [slice(0, 299_990, 11), slice(0, u64::MAX, 1), slice(3, 0, 1), slice(2, 0, 1001), slice(0, 0, 0)] {
        let refused = fetcher.request(slot, &[outside], Urgency::Demand);
        assert!(matches!(refused, Err(Error::SliceOutside { .. })), "{outside:?}: {refused:?}");
    }
    let refused = fetcher.request(slot, &[slice(0, 1, 3 * 4096)], Urgency::Demand);
    assert!(matches!(refused, Err(Error::SlotTooSmall { wanted: 16384, found: 12288, .. })), "{refused:?}");
    assert!(matches!(fetcher.request(slot, &[], Urgency::Demand), Err(Error::SliceCount { found: 0 })));
    let many = [slice(0, 0, 1); 5];
    assert!(matches!(fetcher.request(slot, &many, Urgency::Demand), Err(Error::SliceCount { found: 5 })));
    assert_eq!(arena.state(slot), SlotState::Free);
    assert!(matches!(fetcher.wait(slot, 0), Err(Error::NotHeld { .. })));

    fetcher.request(slot, &[slice(0, 0, 10)], Urgency::Demand).unwrap();
    let refused = fetcher.request(slot, &[slice(0, 0, 10)], Urgency::Demand);
    assert!(matches!(refused, Err(Error::SlotInUse { state: SlotState::InFlight, .. })), "{refused:?}");
    assert!(matches!(fetcher.wait(slot, 1), Err(Error::NotHeld { .. })), "there is one slice");
    fetcher.wait(slot, 0).unwrap();
    let pin = arena.pin(slot).unwrap();
    let refused = fetcher.request(slot, &[slice(0, 0, 10)], Urgency::Demand);
    assert!(matches!(refused, Err(Error::SlotInUse { state: SlotState::Filled, pins: 1, .. })), "{refused:?}");
    drop(pin);
    fetcher.request(slot, &[slice(0, 0, 10)], Urgency::Demand).unwrap();
}
