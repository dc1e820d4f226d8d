//! Each fault is healed or reported as what it is; never wrong bytes, never a hang, and the next request is served.

#![cfg(not(loom))]
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use moce_flash::{
    Arena, Backend, Direct, Error, Fault, Faults, Fetcher, Files, Slice, SlotClass, SlotId, SlotState, Urgency,
    slot_bytes,
};
use std::io::Write;
use std::sync::{Arc, Mutex};
use support::{Disk, Random, assert_holds, backends, in_memory, no_faults, options};

const SIZES: [usize; 2] = [200_000, 50_001];
const MOST: usize = 40_000;

fn arena(files: &Files, count: usize) -> Arc<Arena> {
    Arc::new(Arena::reserve(&[SlotClass { bytes: slot_bytes(&[MOST; 3], files.block_bytes()), count }]).unwrap())
}

/// A fetcher on memory with faults, its only slot, and the faults.
fn faulty(piece_bytes: usize, faults: Faults) -> (Fetcher, SlotId, Arc<Mutex<Faults>>) {
    let files = in_memory(&SIZES, 512);
    let arena = arena(&files, 1);
    let slot = arena.slots(0).next().unwrap();
    let faults = Arc::new(Mutex::new(faults));
    let options = options(Backend::Pread, piece_bytes, 4);
    (Fetcher::faulty(files, arena, &options, faults.clone(), 1).unwrap(), slot, faults)
}

const SLICE: Slice = Slice { file: 0, offset: 1000, bytes: 30_000 };

#[track_caller]
fn fetch(fetcher: &mut Fetcher, slot: SlotId, slice: Slice) -> Result<(), Error> {
    fetcher.request(slot, &[slice], Urgency::Demand).unwrap();
    fetcher.wait(slot, 0)
}

#[test]
fn one_error_is_healed_by_the_retry() {
    let (mut fetcher, slot, _) = faulty(8192, Faults { schedule: [(1, Fault::Error(5))].into(), ..Faults::default() });
    fetch(&mut fetcher, slot, SLICE).unwrap();
    assert_holds(fetcher.arena(), slot, &[SLICE]);
    assert_eq!(fetcher.stats().retries, 1);
}

#[test]
fn an_error_that_stays_fails_the_request_and_says_where() {
    let (mut fetcher, slot, faults) =
        faulty(8192, Faults { bad_ranges: vec![(0, 12_000..12_001)], ..Faults::default() });
    let error = fetch(&mut fetcher, slot, SLICE).unwrap_err();
    assert_eq!(fetcher.arena().state(slot), SlotState::Free);
    // The window of 512..31232 in four pieces of 7,680 bytes: the second starts at 8,192.
    let expected = "reading part-0 at offset 8192: wanted 7680 bytes, got 0: Input/output error (os error 5)";
    assert_eq!(error.to_string(), expected);
    assert_eq!(fetcher.stats().retries, 1);
    // Bytes elsewhere are still served, and these again once the device is well.
    let elsewhere = Slice { offset: 100_000, ..SLICE };
    fetch(&mut fetcher, slot, elsewhere).unwrap();
    assert_holds(fetcher.arena(), slot, &[elsewhere]);
    faults.lock().unwrap().bad_ranges.clear();
    fetch(&mut fetcher, slot, SLICE).unwrap();
    assert_holds(fetcher.arena(), slot, &[SLICE]);
}

#[test]
fn a_slice_that_fails_its_check_fails_the_request_and_the_next_one_is_served() {
    for backend in [Backend::Pread, Backend::Uring] {
        let files = in_memory(&SIZES, 512);
        let arena = arena(&files, 1);
        let slot = arena.slots(0).next().unwrap();
        let Some(mut fetcher) = support::open(&files, &arena, &options(backend, 8192, 4)) else { continue };
        let [good, bad, late] = [1000, 50_000, 99_000].map(|offset| Slice { offset, ..SLICE });
        fetcher.check_slices(Box::new(move |slice, bytes| {
            let right = bytes.iter().zip(slice.offset..).all(|(&byte, offset)| byte == support::byte_at(0, offset));
            assert!(right && bytes.len() == slice.bytes, "the check sees the slice and nothing else");
            *slice != bad
        }));
        fetcher.request(slot, &[good, bad, late], Urgency::Demand).unwrap();
        let error = fetcher.wait(slot, 2).unwrap_err();
        assert!(matches!(error, Error::Damaged { offset: 50_000, bytes: 30_000, .. }), "{error}");
        assert_eq!(arena.state(slot), SlotState::Free);
        fetcher.request(slot, &[good, late], Urgency::Demand).unwrap();
        fetcher.wait(slot, 1).unwrap();
        assert_holds(&arena, slot, &[good, late]);
    }
}

#[test]
fn short_reads_are_continued_from_whole_blocks() {
    // 1,000 bytes are one block of 512 and a bit that is read again; 100 bytes are no block at all, which counts as nothing.
    for (short, retries) in [(1000, 0), (512, 0), (100, 1)] {
        let schedule = [(0, Fault::Short(short)), (5, Fault::Short(3 * 512))].into();
        let (mut fetcher, slot, _) = faulty(8192, Faults { schedule, ..Faults::default() });
        fetch(&mut fetcher, slot, SLICE).unwrap();
        assert_holds(fetcher.arena(), slot, &[SLICE]);
        assert_eq!(fetcher.stats().retries, retries, "{short}");
        assert!(fetcher.stats().short_reads > 0 || retries > 0);
    }
}

#[test]
fn a_file_that_ends_early_is_said_to() {
    let (mut fetcher, slot, faults) = faulty(1 << 20, Faults { ends: vec![(0, 20_000)], ..Faults::default() });
    let error = fetch(&mut fetcher, slot, SLICE).unwrap_err();
    let expected = "part-0 ends early: wanted 30720 bytes at offset 512, got 19488";
    assert_eq!(error.to_string(), expected);
    let before = Slice { bytes: 18_000, ..SLICE };
    fetch(&mut fetcher, slot, before).unwrap();
    assert_holds(fetcher.arena(), slot, &[before]);
    faults.lock().unwrap().ends.clear();
    fetch(&mut fetcher, slot, SLICE).unwrap();
    assert_holds(fetcher.arena(), slot, &[SLICE]);
}

#[test]
fn random_faults_never_give_wrong_bytes_and_never_hang() {
    let disk = Disk::new(&SIZES);
    for direct in [Direct::Auto, Direct::Off] {
        let files = disk.open(direct);
        let arena = arena(&files, 4);
        for backend in backends(&files, &arena) {
            for seed in 0..3 {
                let mut random = Random(seed);
                let faults = Faults { errors: 0.04, short: 0.2, delays: 0.2, ..Faults::default() };
                let options = options(backend, 4096 << (seed % 3), 5);
                let faults = Arc::new(Mutex::new(faults));
                let mut fetcher = Fetcher::faulty(files.clone(), arena.clone(), &options, faults, seed).unwrap();
                let (mut landed, mut failed) = (0, 0);
                for _ in 0..40 {
                    let experts: Vec<[Slice; 2]> =
                        arena.slots(0).map(|_| [(); 2].map(|()| random.slice(&SIZES, MOST))).collect();
                    for (slot, slices) in arena.slots(0).zip(&experts) {
                        fetcher.request(slot, slices, Urgency::Demand).unwrap();
                    }
                    fetcher.submit();
                    for (slot, slices) in arena.slots(0).zip(&experts) {
                        match fetcher.wait(slot, 0).and_then(|()| fetcher.wait(slot, 1)) {
                            Ok(()) => {
                                landed += 1;
                                assert_holds(&arena, slot, slices);
                            }
                            Err(Error::Read { path, offset, cause, .. }) => {
                                failed += 1;
                                assert!(
                                    slices
                                        .iter()
                                        .any(|slice| disk.path(slice.file) == path && offset < slice.offset + 40_000)
                                );
                                assert_eq!(cause.raw_os_error(), Some(5));
                                assert_eq!(arena.state(slot), SlotState::Free);
                            }
                            Err(other) => panic!("{other}, seed {seed}"),
                        }
                    }
                    assert!(fetcher.is_idle());
                }
                assert!(
                    landed > 60 && fetcher.stats().retries > 0 && fetcher.stats().short_reads > 0,
                    "{landed}, {failed}"
                );
            }
        }
    }
}

#[test]
fn a_failed_fetch_keeps_its_slot_until_the_last_read_is_back_and_its_error_until_it_is_taken() {
    let (mut fetcher, slot, _) = faulty(4096, Faults { bad_ranges: vec![(0, 0..1)], ..Faults::default() });
    let slices = [Slice { file: 0, offset: 0, bytes: 100 }, Slice { file: 0, offset: 50_000, bytes: 30_000 }];
    fetcher.request(slot, &slices, Urgency::Background).unwrap();
    fetcher.wait_all().unwrap();
    assert_eq!(fetcher.arena().state(slot), SlotState::Failed);
    assert!(fetcher.arena().pin(slot).is_err());
    assert!(matches!(fetcher.take_error(slot), Some(Error::Read { offset: 0, .. })));
    assert_eq!(fetcher.arena().state(slot), SlotState::Free);
    assert!(fetcher.take_error(slot).is_none());
}

#[test]
fn a_real_file_cut_short_or_changed_in_place_is_noticed_and_one_renamed_over_is_not_read() {
    for direct in [Direct::Auto, Direct::Off] {
        let disk = Disk::new(&SIZES);
        let files = disk.open(direct);
        let arena = arena(&files, 1);
        let slot = arena.slots(0).next().unwrap();
        for backend in backends(&files, &arena) {
            let disk = Disk::new(&SIZES);
            let files = disk.open(direct);
            let mut fetcher =
                Fetcher::faulty(files.clone(), arena.clone(), &options(backend, 8192, 4), no_faults(), 0).unwrap();
            files.check_unchanged().unwrap();

            let other = disk.path(0).with_extension("new");
            std::fs::write(&other, vec![0; SIZES[0]]).unwrap();
            std::fs::rename(&other, disk.path(0)).unwrap();
            files.check_unchanged().unwrap();
            fetch(&mut fetcher, slot, SLICE).unwrap();
            assert_holds(&arena, slot, &[SLICE]);

            let slice = Slice { file: 1, offset: 20_000, bytes: 30_001 };
            let changing = std::fs::OpenOptions::new().write(true).open(disk.path(1)).unwrap();
            changing.set_len(30_000).unwrap();
            let error = fetch(&mut fetcher, slot, slice).unwrap_err();
            assert!(matches!(&error, Error::Truncated { path, .. } if *path == disk.path(1)), "{error}");
            let error = files.check_unchanged().unwrap_err();
            assert!(error.to_string().contains("it was 50001 bytes of time"), "{error}");
            assert!(matches!(error, Error::Changed { found, .. } if found.bytes == 30_000));
        }
    }
    let disk = Disk::new(&SIZES);
    let files = disk.open(Direct::Auto);
    let mut changing = std::fs::OpenOptions::new().write(true).open(disk.path(0)).unwrap();
    // A file system's clock may tick as rarely as every 10 ms.
    std::thread::sleep(std::time::Duration::from_millis(30));
    changing.write_all(b"other").unwrap();
    assert!(matches!(files.check_unchanged(), Err(Error::Changed { .. })));
}
