//! Reads in flight keep their memory: dropping fetcher or arena at any moment waits for them, and no fetch allocates.

#![cfg(not(loom))]
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use moce_flash::{
    Arena, Backend, Clock, Direct, Fault, Faults, Fetcher, Simulation, Slice, SlotClass, SlotId, SlotState, Tuning,
    Urgency, slot_bytes,
};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{Disk, Random, assert_holds, backends, in_memory, open, options};

const SIZES: [usize; 1] = [8 << 20];
const SLICE: usize = 300_000;

fn arena(block_bytes: usize, count: usize) -> Arc<Arena> {
    Arc::new(Arena::reserve(&[SlotClass { bytes: slot_bytes(&[SLICE; 3], block_bytes), count }]).unwrap())
}

fn expert(random: &mut Random) -> [Slice; 3] {
    [(); 3].map(|()| Slice { file: 0, offset: random.below((SIZES[0] - SLICE) as u64), bytes: SLICE })
}

#[test]
fn dropping_a_fetcher_waits_for_its_reads_and_leaves_free_slots() {
    let disk = Disk::new(&SIZES);
    let files = disk.open(Direct::Auto);
    let arena = arena(files.block_bytes(), 4);
    let mut random = Random(1);
    for backend in backends(&files, &arena) {
        for _ in 0..10 {
            let options = options(backend, 64 << 10, 32);
            let Some(mut dropped) = open(&files, &arena, &options) else { continue };
            for slot in arena.slots(0) {
                dropped.request(slot, &expert(&mut random), Urgency::Demand).unwrap();
            }
            dropped.submit();
            drop(dropped);
            assert!(arena.slots(0).all(|slot| arena.state(slot) == SlotState::Free));
            // If a late read still wrote, it would write into what the next fetcher brings.
            let Some(mut next) = open(&files, &arena, &options) else { continue };
            let experts: Vec<[Slice; 3]> = arena.slots(0).map(|_| expert(&mut random)).collect();
            for (slot, slices) in arena.slots(0).zip(&experts) {
                next.request(slot, slices, Urgency::Demand).unwrap();
            }
            next.wait_all().unwrap();
            for (slot, slices) in arena.slots(0).zip(&experts) {
                assert_holds(&arena, slot, slices);
            }
        }
    }
}

#[test]
fn the_last_fetcher_keeps_the_arena_until_its_reads_are_back() {
    let disk = Disk::new(&SIZES);
    let files = disk.open(Direct::Auto);
    let all = backends(&files, &arena(files.block_bytes(), 1));
    for backend in all {
        for _ in 0..10 {
            let arena = arena(files.block_bytes(), 3);
            let watch = Arc::downgrade(&arena);
            let Some(mut fetcher) = open(&files, &arena, &options(backend, 32 << 10, 64)) else { continue };
            for slot in arena.slots(0) {
                fetcher.request(slot, &expert(&mut Random(9)), Urgency::Demand).unwrap();
            }
            fetcher.submit();
            drop(arena);
            assert!(watch.upgrade().is_some(), "reads are under way");
            drop(fetcher);
            assert!(watch.upgrade().is_none());
        }
    }
}

#[test]
fn a_read_that_is_held_up_is_waited_for() {
    let files = in_memory(&SIZES, 4096);
    let arena = arena(4096, 1);
    let slot = arena.slots(0).next().unwrap();
    let simulation = Simulation { latency: Duration::from_millis(30), clock: Clock::real(), ..Simulation::default() };
    let mut fetcher = Fetcher::simulated(files, arena.clone(), simulation, Tuning::default());
    fetcher.request(slot, &expert(&mut Random(2)), Urgency::Demand).unwrap();
    fetcher.submit();
    let begin = std::time::Instant::now();
    drop(fetcher);
    assert!(begin.elapsed() >= Duration::from_millis(25), "{:?}", begin.elapsed());
    assert_eq!(arena.state(slot), SlotState::Free);
}

#[test]
fn a_reader_on_another_thread_keeps_its_expert_while_others_are_fetched() {
    let disk = Disk::new(&SIZES);
    let files = disk.open(Direct::Auto);
    let arena = arena(files.block_bytes(), 3);
    let slots: Vec<SlotId> = arena.slots(0).collect();
    for backend in backends(&files, &arena) {
        let Some(mut fetcher) = open(&files, &arena, &options(backend, 64 << 10, 8)) else { continue };
        let mut random = Random(4);
        for _ in 0..20 {
            let kept = expert(&mut random);
            fetcher.request(slots[0], &kept, Urgency::Demand).unwrap();
            fetcher.wait(slots[0], 0).unwrap();
            // The pin comes while the other slices are still in flight.
            let pin = arena.pin(slots[0]).unwrap();
            std::thread::scope(|scope| {
                let reader = scope.spawn(|| {
                    while !(pin.has_landed(1) && pin.has_landed(2)) {
                        std::thread::yield_now();
                    }
                    (0..5).for_each(|_| assert_holds(&arena, slots[0], &kept));
                });
                for &slot in &slots[1..] {
                    fetcher.request(slot, &expert(&mut random), Urgency::Demand).unwrap();
                }
                fetcher.wait_all().unwrap();
                assert!(fetcher.request(slots[0], &expert(&mut random), Urgency::Demand).is_err());
                reader.join().unwrap();
            });
        }
    }
}

#[test]
fn fetching_allocates_nothing_even_when_reads_fall_short_or_fail_once() {
    let disk = Disk::new(&SIZES);
    let files = disk.open(Direct::Auto);
    let arena = arena(files.block_bytes(), 4);
    let slots: Vec<SlotId> = arena.slots(0).collect();
    let mut random = Random(5);
    // A round has about 120 reads, so a retry comes before the next error.
    let errors = (10..5000).step_by(401).map(|n| (n, Fault::Error(5)));
    let schedule = (0..5000).step_by(37).map(|n| (n, Fault::Short(9000))).chain(errors).collect();
    let faults = Arc::new(Mutex::new(Faults { schedule, ..Faults::default() }));
    for backend in backends(&files, &arena) {
        let options = options(backend, 32 << 10, 8);
        for has_faults in [false, true] {
            let opened = if has_faults {
                Fetcher::faulty(files.clone(), arena.clone(), &options, faults.clone(), 0).ok()
            } else {
                open(&files, &arena, &options)
            };
            let Some(mut fetcher) = opened else { continue };
            let mut round = |fetcher: &mut Fetcher| {
                for (index, &slot) in slots.iter().enumerate() {
                    let urgency = if index == 3 { Urgency::Background } else { Urgency::Demand };
                    fetcher.request(slot, &expert(&mut random), urgency).unwrap();
                }
                fetcher.submit();
                fetcher.poll().unwrap();
                fetcher.wait_any(&[(slots[1], 0), (slots[0], 2)]).unwrap();
                fetcher.cancel(slots[2]);
                fetcher.wait(slots[3], 1).unwrap();
                fetcher.wait_all().unwrap();
                files.check_unchanged().unwrap();
            };
            let info = allocation_counter::measure(|| (0..10).for_each(|_| round(&mut fetcher)));
            assert_eq!(info.count_total, 0, "{backend}");
            assert_eq!(fetcher.stats().retries > 0, has_faults);
        }
    }
}

#[test]
fn a_backend_says_what_it_is() {
    let files = in_memory(&SIZES, 4096);
    let arena = arena(4096, 1);
    let auto = Fetcher::open(files.clone(), arena.clone(), &options(Backend::Auto, 1 << 20, 4)).unwrap();
    let said = auto.to_string();
    assert!(said.starts_with("pread with 4 threads (io_uring cannot be used here: "), "{said}");
    assert!(said.ends_with("), in memory, 4 reads of 1024 KiB at once"), "{said}");
    assert!(Fetcher::open(files, arena, &options(Backend::Uring, 1 << 20, 4)).is_err());
    for backend in [Backend::Auto, Backend::Uring, Backend::Pread] {
        assert_eq!(backend.to_string().parse::<Backend>().unwrap(), backend);
    }
    assert_eq!(
        "mmap".parse::<Backend>().unwrap_err().to_string(),
        "unknown I/O backend 'mmap' (known: auto, uring, pread)"
    );
}

#[test]
fn a_fetcher_leaves_alone_what_another_brings_into_a_slot_that_it_once_filled() {
    let files = in_memory(&SIZES, 4096);
    let arena = arena(4096, 1);
    let slot = arena.slots(0).next().unwrap();
    let simulation = || Simulation { latency: Duration::from_millis(2), clock: Clock::real(), ..Simulation::default() };
    let mut first = Fetcher::simulated(files.clone(), arena.clone(), simulation(), Tuning::default());
    let mut second = Fetcher::simulated(files, arena.clone(), simulation(), Tuning::default());
    first.request(slot, &expert(&mut Random(5)), Urgency::Demand).unwrap();
    first.wait_all().unwrap();
    let slices = expert(&mut Random(6));
    second.request(slot, &slices, Urgency::Demand).unwrap();
    second.submit();
    first.cancel(slot);
    drop(first);
    assert_eq!(arena.state(slot), SlotState::InFlight, "the second's reads are on the device");
    second.wait_all().unwrap();
    assert_holds(&arena, slot, &slices);
}
