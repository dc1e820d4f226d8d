//! Random sequences of everything a user can do, on a device with faults, against a plain model of what each slot holds.

#![cfg(not(loom))]
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use moce_flash::{Arena, Backend, Error, Faults, Fetcher, Slice, SlotClass, SlotId, SlotState, Urgency, slot_bytes};
use proptest::prelude::*;
use std::sync::{Arc, Mutex};
use support::{Random, assert_holds, byte_at, in_memory, options};

const SIZES: [usize; 2] = [60_000, 9_001];
const MOST: usize = 12_000;
const SLOTS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    Request { slot: usize, seed: u64, count: usize, background: bool },
    Submit,
    Poll,
    Wait { slot: usize, slice: usize },
    WaitAll,
    Cancel { slot: usize },
    CancelAll,
    WaitGivenUp { slot: usize },
    Promote { slot: usize },
    Pin { slot: usize },
    Unpin,
    Write { slot: usize, slice: usize },
    Evict { slot: usize },
    Copy { from: usize, to: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let slot = || 0..SLOTS;
    prop_oneof![
        4 => (slot(), any::<u64>(), 1usize..4, any::<bool>())
            .prop_map(|(slot, seed, count, background)| Step::Request { slot, seed, count, background }),
        3 => Just(Step::Submit),
        3 => Just(Step::Poll),
        4 => (slot(), 0usize..3).prop_map(|(slot, slice)| Step::Wait { slot, slice }),
        1 => Just(Step::WaitAll),
        1 => slot().prop_map(|slot| Step::Cancel { slot }),
        1 => Just(Step::CancelAll),
        1 => slot().prop_map(|slot| Step::WaitGivenUp { slot }),
        1 => slot().prop_map(|slot| Step::Promote { slot }),
        3 => slot().prop_map(|slot| Step::Pin { slot }),
        2 => Just(Step::Unpin),
        2 => (slot(), 0usize..3).prop_map(|(slot, slice)| Step::Write { slot, slice }),
        1 => slot().prop_map(|slot| Step::Evict { slot }),
        1 => (slot(), slot()).prop_map(|(from, to)| Step::Copy { from, to }),
    ]
}

/// What the model knows of a slot: the slices it was asked to hold, and which of them were inverted in place.
#[derive(Clone, Debug, Default)]
struct Held {
    slices: Vec<Slice>,
    inverted: [bool; 3],
    was_cancelled: bool,
}

/// Whatever has landed in any slot is what the model says.
fn check(arena: &Arena, slots: &[SlotId], held: &[Held]) {
    for (&slot, held) in slots.iter().zip(held) {
        let Ok(pin) = arena.pin(slot) else {
            assert!(matches!(arena.state(slot), SlotState::Free | SlotState::Failed));
            continue;
        };
        let mut landed = 0;
        for (index, slice) in held.slices.iter().enumerate() {
            let Some(found) = pin.slice(index) else { continue };
            landed += 1;
            assert_eq!(found.len(), slice.bytes);
            let mask = if held.inverted[index] { 0xff } else { 0 };
            for (&byte, offset) in found.iter().zip(slice.offset..) {
                assert_eq!(byte ^ mask, byte_at(slice.file, offset), "{slice:?} in {slot}");
            }
        }
        assert_eq!(landed == held.slices.len(), arena.state(slot) == SlotState::Filled);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_keeps_every_slot_right(
        steps in prop::collection::vec(step(), 1..60),
        seed in any::<u64>(),
        piece_blocks in 1usize..20,
        depth in 1usize..6,
        rates in prop_oneof![Just((0.0, 0.0, 0.0)), Just((0.05, 0.2, 0.2))],
    ) {
        let files = in_memory(&SIZES, 512);
        let class = SlotClass { bytes: slot_bytes(&[MOST; 3], 512), count: SLOTS };
        let arena = Arc::new(Arena::reserve(&[class]).unwrap());
        let slots: Vec<SlotId> = arena.slots(0).collect();
        let faults = Faults { errors: rates.0, short: rates.1, delays: rates.2, ..Faults::default() };
        let has_faults = rates.0 > 0.0;
        let options = options(Backend::Pread, 512 * piece_blocks, depth);
        let mut fetcher = Fetcher::faulty(files, arena.clone(), &options, Arc::new(Mutex::new(faults)), seed).unwrap();
        let mut held = vec![Held::default(); SLOTS];
        let mut pins = Vec::new();
        for step in steps {
            match step {
                Step::Request { slot, seed, count, background } => {
                    let mut random = Random(seed);
                    let slices: Vec<Slice> = (0..count).map(|_| random.slice(&SIZES, MOST)).collect();
                    let is_busy = arena.state(slots[slot]) == SlotState::InFlight || arena.pins(slots[slot]) > 0;
                    let urgency = if background { Urgency::Background } else { Urgency::Demand };
                    match fetcher.request(slots[slot], &slices, urgency) {
                        Ok(()) => {
                            prop_assert!(!is_busy);
                            held[slot] = Held { slices, ..Held::default() };
                        }
                        Err(Error::SlotInUse { .. }) => prop_assert!(is_busy),
                        Err(other) => return Err(TestCaseError::fail(other.to_string())),
                    }
                }
                Step::Submit => fetcher.submit(),
                Step::Poll => fetcher.poll().unwrap(),
                Step::Wait { slot, slice } => {
                    let before = arena.state(slots[slot]);
                    match fetcher.wait(slots[slot], slice) {
                        Ok(()) => prop_assert!(slice < held[slot].slices.len() && arena.has_landed(slots[slot], slice)),
                        Err(Error::NotHeld { .. }) => prop_assert!(
                            held[slot].was_cancelled || before == SlotState::Free || slice >= held[slot].slices.len()
                        ),
                        Err(Error::Read { .. } | Error::Truncated { .. }) => {
                            prop_assert!(has_faults && arena.state(slots[slot]) == SlotState::Free);
                        }
                        Err(other) => return Err(TestCaseError::fail(other.to_string())),
                    }
                }
                Step::WaitAll => {
                    fetcher.wait_all().unwrap();
                    prop_assert!(fetcher.is_idle());
                    prop_assert!(slots.iter().all(|&slot| arena.state(slot) != SlotState::InFlight));
                }
                Step::Cancel { slot } => {
                    held[slot].was_cancelled |= arena.state(slots[slot]) == SlotState::InFlight;
                    fetcher.cancel(slots[slot]);
                }
                Step::CancelAll => {
                    for (held, &slot) in held.iter_mut().zip(&slots) {
                        held.was_cancelled |= arena.state(slot) == SlotState::InFlight;
                    }
                    fetcher.cancel_all().unwrap();
                    prop_assert!(fetcher.is_idle());
                    prop_assert!(slots.iter().all(|&slot| arena.state(slot) != SlotState::InFlight));
                }
                Step::WaitGivenUp { slot } => {
                    held[slot].was_cancelled |= arena.state(slots[slot]) == SlotState::InFlight;
                    let at_once = fetcher.is_queued(slots[slot]);
                    fetcher.cancel(slots[slot]);
                    prop_assert!(!at_once || arena.state(slots[slot]) == SlotState::Free);
                    fetcher.wait_given_up(slots[slot]).unwrap();
                    prop_assert!(arena.state(slots[slot]) != SlotState::InFlight);
                }
                Step::Promote { slot } => fetcher.promote(slots[slot]),
                Step::Pin { slot } => pins.extend(arena.pin(slots[slot])),
                Step::Unpin => drop(pins.pop()),
                Step::Write { slot, slice } => {
                    if let Ok(mut pin) = arena.pin(slots[slot]) {
                        let may = arena.has_landed(slots[slot], slice) && arena.pins(slots[slot]) == 1;
                        let written = pin.write(slice);
                        prop_assert_eq!(written.is_ok(), may);
                        if let Ok(mut bytes) = written {
                            bytes.iter_mut().for_each(|byte| *byte = !*byte);
                            held[slot].inverted[slice] ^= true;
                        }
                    }
                }
                Step::Evict { slot } => {
                    let may = arena.state(slots[slot]) != SlotState::InFlight && arena.pins(slots[slot]) == 0;
                    prop_assert_eq!(arena.evict(slots[slot]).is_ok(), may);
                }
                Step::Copy { from, to } => {
                    if let Ok(pin) = arena.pin(slots[from]) {
                        let may = arena.state(slots[from]) == SlotState::Filled
                            && arena.state(slots[to]) != SlotState::InFlight
                            && arena.pins(slots[to]) == 0;
                        prop_assert_eq!(arena.copy(&pin, slots[to]).is_ok(), may);
                        if may {
                            held[to] = held[from].clone();
                        }
                    }
                }
            }
            check(&arena, &slots, &held);
        }
        drop(pins);
        // Whatever happened before, a device that is well serves the next request.
        fetcher.wait_all().unwrap();
        if !has_faults {
            let slices = [Slice { file: 1, offset: 3, bytes: 8_998 }];
            fetcher.request(slots[0], &slices, Urgency::Demand).unwrap();
            fetcher.wait(slots[0], 0).unwrap();
            assert_holds(&arena, slots[0], &slices);
        }
    }
}
