//! Order and time on the simulated device, in virtual time: demand before background, gate and up before down, the model of
//! the device itself, and the probe.

#![cfg(not(loom))]
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use moce_flash::{
    Arena, Clock, Error, Fetcher, Probe, Simulation, Slice, SlotClass, SlotId, SlotState, Tuning, Urgency, slot_bytes,
};
use std::sync::Arc;
use std::time::Duration;
use support::in_memory;

const FILE: usize = 20 << 20;
const SLICE: usize = 1 << 20;

/// 1 GB/s, 100 µs, 4 lanes.
fn simulation(clock: &Clock) -> Simulation {
    Simulation {
        latency: Duration::from_micros(100),
        bandwidth: 1e9,
        lanes: 4,
        clock: clock.clone(),
        ..Simulation::default()
    }
}

fn fetcher(clock: &Clock, slots: usize) -> (Fetcher, Vec<SlotId>) {
    let files = in_memory(&[FILE], 4096);
    let arena = Arc::new(Arena::reserve(&[SlotClass { bytes: slot_bytes(&[SLICE; 3], 4096), count: slots }]).unwrap());
    let slots = arena.slots(0).collect();
    (Fetcher::simulated(files, arena, simulation(clock), Tuning { piece_bytes: 256 << 10, depth: 4 }), slots)
}

/// The three slices of expert `index`, far apart and on blocks.
fn expert(index: u64) -> [Slice; 3] {
    [0, 1, 2].map(|part| Slice { file: 0, offset: part * (4 << 20) + index * (1 << 20), bytes: SLICE })
}

#[test]
fn the_device_takes_latency_and_bandwidth_and_overlaps_with_computing() {
    let clock = Clock::virtual_time();
    let (mut fetcher, slots) = fetcher(&clock, 1);
    fetcher.request(slots[0], &expert(0)[..1], Urgency::Demand).unwrap();
    fetcher.submit();
    fetcher.wait(slots[0], 0).unwrap();
    let alone = clock.now();
    // 1 MiB at 1 GB/s behind one latency: the four pieces' latencies overlap.
    let expected = Duration::from_micros(100) + Duration::from_nanos(1 << 20);
    assert!(alone.abs_diff(expected) < Duration::from_micros(1), "{alone:?}");

    fetcher.request(slots[0], &expert(1)[..1], Urgency::Demand).unwrap();
    fetcher.submit();
    clock.advance(Duration::from_millis(5));
    assert!(!fetcher.arena().has_landed(slots[0], 0), "nothing lands behind the caller's back");
    fetcher.poll().unwrap();
    assert!(fetcher.arena().has_landed(slots[0], 0));
    assert_eq!(clock.now(), alone + Duration::from_millis(5), "what was read while computing takes no time");
}

#[test]
fn slices_land_in_the_order_of_the_request_and_can_be_used_one_by_one() {
    let (mut fetcher, slots) = fetcher(&Clock::virtual_time(), 2);
    for (index, &slot) in slots.iter().enumerate() {
        fetcher.request(slot, &expert(index as u64), Urgency::Demand).unwrap();
    }
    fetcher.submit();
    let wanted: Vec<(SlotId, usize)> = slots.iter().flat_map(|&slot| (0..3).map(move |part| (slot, part))).collect();
    for (index, &(slot, part)) in wanted.iter().enumerate() {
        let next = fetcher.wait_any(&wanted[index..]).unwrap();
        assert_eq!(next, 0, "{slot} slice {part}");
        let later = wanted[index..].iter().filter(|&&(slot, part)| fetcher.arena().has_landed(slot, part)).count();
        assert_eq!(later, 1, "the slices behind it have not landed yet");
        assert!(fetcher.arena().pin(slot).unwrap().slice(part).is_some());
    }
}

#[test]
fn a_demand_waits_for_at_most_a_mebibyte_of_background_and_none_starts_before_it_is_done() {
    let clock = Clock::virtual_time();
    let (mut fetcher, slots) = fetcher(&clock, 4);
    for (index, &slot) in slots[..3].iter().enumerate() {
        fetcher.request(slot, &expert(index as u64), Urgency::Background).unwrap();
    }
    fetcher.submit();
    let begin = clock.now();
    fetcher.request(slots[3], &expert(9), Urgency::Demand).unwrap();
    fetcher.submit();
    (0..3).for_each(|part| fetcher.wait(slots[3], part).unwrap());
    let taken = clock.now() - begin;
    let own = Duration::from_micros(100) + Duration::from_nanos(3 << 20);
    let late = taken.saturating_sub(own);
    assert!(late <= Duration::from_micros(200) + Duration::from_nanos(1 << 20), "{late:?}");
    let landed = |fetcher: &Fetcher| {
        slots[..3]
            .iter()
            .flat_map(|&slot| (0..3).map(move |part| (slot, part)))
            .filter(|&(slot, part)| fetcher.arena().has_landed(slot, part))
            .count()
    };
    assert!(landed(&fetcher) <= 1);
    // Idle again: background goes on by itself, one poll at a time.
    for _ in 0..200 {
        clock.advance(Duration::from_millis(1));
        fetcher.poll().unwrap();
    }
    assert_eq!(landed(&fetcher), 9);
    assert!(fetcher.is_idle());
}

#[test]
fn no_background_read_starts_while_a_demand_is_in_flight() {
    let clock = Clock::virtual_time();
    let (mut fetcher, slots) = fetcher(&clock, 3);
    fetcher.request(slots[0], &expert(0), Urgency::Demand).unwrap();
    fetcher.request(slots[1], &expert(1), Urgency::Background).unwrap();
    fetcher.submit();
    fetcher.wait(slots[0], 0).unwrap();
    // Two slices are still in flight: whatever started behind them would come before the second demand.
    fetcher.request(slots[2], &expert(2), Urgency::Demand).unwrap();
    fetcher.submit();
    fetcher.wait(slots[2], 2).unwrap();
    let expected = Duration::from_micros(100) + Duration::from_nanos(6 << 20);
    assert!(clock.now().saturating_sub(expected) < Duration::from_micros(300), "{:?}", clock.now());
}

#[test]
fn a_guess_that_comes_true_is_joined_and_not_read_twice() {
    let clock = Clock::virtual_time();
    let (mut fetcher, slots) = fetcher(&clock, 2);
    fetcher.request(slots[0], &expert(0), Urgency::Background).unwrap();
    fetcher.request(slots[1], &expert(1), Urgency::Background).unwrap();
    fetcher.submit();
    // The second guess comes true: it passes the first.
    fetcher.wait(slots[1], 2).unwrap();
    assert_eq!(fetcher.arena().state(slots[1]), SlotState::Filled);
    assert_ne!(fetcher.arena().state(slots[0]), SlotState::Filled);
    fetcher.wait_all().unwrap();
    assert_eq!(fetcher.stats().bytes, 6 << 20);
}

#[test]
fn a_read_counts_as_what_it_began_as() {
    let (mut fetcher, slots) = fetcher(&Clock::virtual_time(), 1);
    fetcher.request(slots[0], &expert(0), Urgency::Background).unwrap();
    fetcher.submit();
    // A mebibyte is on the device when the guess comes true.
    fetcher.wait(slots[0], 2).unwrap();
    assert_eq!((fetcher.stats().bytes, fetcher.stats().demand_bytes), (3 << 20, 2 << 20));
}

#[test]
fn a_cancelled_fetch_gives_its_slot_back_with_its_last_read() {
    let clock = Clock::virtual_time();
    let (mut fetcher, slots) = fetcher(&clock, 2);
    fetcher.request(slots[0], &expert(0), Urgency::Background).unwrap();
    fetcher.request(slots[1], &expert(1), Urgency::Background).unwrap();
    fetcher.submit();
    fetcher.cancel(slots[0]);
    assert_eq!(fetcher.arena().state(slots[0]), SlotState::InFlight, "the device still writes to it");
    assert!(fetcher.request(slots[0], &expert(2), Urgency::Demand).is_err());
    fetcher.cancel(slots[1]);
    assert_eq!(fetcher.arena().state(slots[1]), SlotState::Free, "none of it had started");
    fetcher.wait_all().unwrap();
    assert_eq!(fetcher.arena().state(slots[0]), SlotState::Free);
    assert!(fetcher.stats().bytes <= 1 << 20);
    fetcher.request(slots[0], &expert(2), Urgency::Demand).unwrap();
    fetcher.wait(slots[0], 2).unwrap();
}

/// A warm start asks for gigabytes, of which a mebibyte is on the device.
#[test]
fn giving_up_everything_waits_for_what_has_begun_and_for_nothing_else() {
    let (mut fetcher, slots) = fetcher(&Clock::virtual_time(), 4);
    for (index, &slot) in slots.iter().enumerate() {
        fetcher.request(slot, &expert(index as u64), Urgency::Background).unwrap();
    }
    fetcher.submit();
    assert!(!fetcher.is_queued(slots[0]) && slots[1..].iter().all(|&slot| fetcher.is_queued(slot)));
    fetcher.cancel_all().unwrap();
    assert!(fetcher.is_idle() && slots.iter().all(|&slot| fetcher.arena().state(slot) == SlotState::Free));
    assert!(!slots.iter().any(|&slot| fetcher.is_queued(slot)));
    assert_eq!(fetcher.stats().bytes, 1 << 20);
}

#[test]
fn waiting_for_a_fetch_that_was_given_up_waits_for_no_other() {
    let (mut fetcher, slots) = fetcher(&Clock::virtual_time(), 3);
    for (index, &slot) in slots.iter().enumerate() {
        fetcher.request(slot, &expert(index as u64), Urgency::Background).unwrap();
    }
    fetcher.submit();
    fetcher.cancel(slots[0]);
    assert_eq!(fetcher.arena().state(slots[0]), SlotState::InFlight);
    fetcher.wait_given_up(slots[0]).unwrap();
    assert_eq!(fetcher.arena().state(slots[0]), SlotState::Free);
    assert!(slots[1..].iter().all(|&slot| fetcher.arena().state(slot) == SlotState::InFlight));
}

#[test]
fn the_same_seed_gives_the_same_times() {
    let run = |seed| {
        let clock = Clock::virtual_time();
        let files = in_memory(&[FILE], 4096);
        let arena = Arc::new(Arena::reserve(&[SlotClass { bytes: slot_bytes(&[SLICE; 3], 4096), count: 1 }]).unwrap());
        let slot = arena.slots(0).next().unwrap();
        let simulation = Simulation { jitter: 0.5, seed, ..simulation(&clock) };
        let mut fetcher = Fetcher::simulated(files, arena, simulation, Tuning { piece_bytes: 64 << 10, depth: 2 });
        fetcher.request(slot, &expert(0), Urgency::Demand).unwrap();
        fetcher.wait(slot, 2).unwrap();
        clock.now()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn the_probe_keeps_what_is_fast_on_this_device_and_its_time() {
    // 2 ms a read, whatever its size, and one lane: large reads win by far.
    let files = in_memory(&[FILE], 4096);
    let arena = Arc::new(Arena::reserve(&[SlotClass { bytes: slot_bytes(&[SLICE; 3], 4096), count: 2 }]).unwrap());
    let slots: Vec<SlotId> = arena.slots(0).collect();
    let simulation = Simulation {
        latency: Duration::from_millis(2),
        bandwidth: 1e11,
        lanes: 1,
        clock: Clock::real(),
        ..Simulation::default()
    };
    let mut fetcher = Fetcher::simulated(files, arena.clone(), simulation, Tuning::default());
    let limit = Duration::from_millis(700);
    let probe = Probe { slices: &[SLICE; 3], slots: &slots, limit, depth: Some(4), seed: 3 };
    let begin = std::time::Instant::now();
    let profile = fetcher.probe(&probe).unwrap();
    assert_eq!(profile.tuning, Tuning { piece_bytes: 4 << 20, depth: 4 }, "{profile:?}");
    assert_eq!(fetcher.tuning(), profile.tuning);
    assert_eq!(profile.tried.len(), 3);
    // The burst that runs at the limit is finished: 48 reads of 128 KiB take about 100 ms here.
    assert!(begin.elapsed() < limit + Duration::from_secs(2), "{:?}", begin.elapsed());
    assert!(slots.iter().all(|&slot| arena.state(slot) == SlotState::Free));
}

#[test]
fn the_probe_reads_no_file_that_is_too_small_and_leaves_no_slot_in_use() {
    let probing = |sizes: &[usize]| {
        let files = in_memory(sizes, 4096);
        let arena = Arc::new(Arena::reserve(&[SlotClass { bytes: slot_bytes(&[SLICE; 3], 4096), count: 8 }]).unwrap());
        let slots: Vec<SlotId> = arena.slots(0).collect();
        let mut fetcher = Fetcher::simulated(files, arena, simulation(&Clock::virtual_time()), Tuning::default());
        // No time at all: every tuning is tried once nevertheless.
        let probe = Probe { slices: &[SLICE; 3], slots: &slots, limit: Duration::ZERO, depth: Some(4), seed: 0 };
        let outcome = fetcher.probe(&probe);
        assert!(slots.iter().all(|&slot| fetcher.arena().state(slot) == SlotState::Free));
        assert!(fetcher.is_idle());
        outcome
    };
    // Parts of a split model, one of them with little in it.
    let profile = probing(&[FILE, SLICE / 2, FILE]).unwrap();
    assert!(profile.tried.len() == 3 && profile.tried.iter().all(|&(_, rate)| rate > 0.0), "{profile:?}");
    assert!(matches!(probing(&[SLICE / 2]).unwrap_err(), Error::SliceOutside { .. }));
}

#[test]
fn the_probe_leaves_no_slot_in_use_where_it_fails() {
    let files = in_memory(&[FILE], 4096);
    let arena = Arc::new(Arena::reserve(&[SlotClass { bytes: slot_bytes(&[SLICE; 3], 4096), count: 3 }]).unwrap());
    let slots: Vec<SlotId> = arena.slots(0).collect();
    let mut fetcher = Fetcher::simulated(files, arena.clone(), simulation(&Clock::virtual_time()), Tuning::default());
    fetcher.request(slots[2], &expert(0), Urgency::Demand).unwrap();
    fetcher.wait_all().unwrap();
    let pin = arena.pin(slots[2]).unwrap();
    let probe = Probe { slices: &[SLICE; 3], slots: &slots, limit: Duration::ZERO, depth: None, seed: 0 };
    assert!(fetcher.probe(&probe).is_err(), "its last slot is pinned");
    assert!(slots[..2].iter().all(|&slot| arena.state(slot) == SlotState::Free));
    assert_eq!((arena.state(slots[2]), fetcher.tuning()), (SlotState::Filled, Tuning::default()));
    drop(pin);
}
