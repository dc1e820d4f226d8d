//! Pins, writers and copies, on slots that are filled by hand.

#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;

fn arena() -> Arena {
    Arena::reserve(&[SlotClass { bytes: 5000, count: 2 }, SlotClass { bytes: 20_000, count: 1 }]).unwrap()
}

/// Fills a slot with slices of 100 and 50 bytes.
fn fill(arena: &Arena, slot: SlotId, value: u8) {
    arena.word(slot).begin().unwrap();
    for (slice, place) in [32..132, 4200..4250].into_iter().enumerate() {
        arena.place(slot, slice, place.clone());
        // SAFETY: the slot is in flight and the slice has not landed.
        unsafe { arena.target(slot, place) }.bytes_mut().fill(value + slice as u8);
        arena.word(slot).land(slice, slice == 1);
    }
}

#[test]
fn slots_are_whole_pages_class_after_class() {
    let arena = arena();
    assert_eq!(arena.bytes(), 2 * 8192 + 20_480);
    assert_eq!(
        arena.bytes(),
        Arena::bytes_for(&[SlotClass { bytes: 8192, count: 2 }, SlotClass { bytes: 20_480, count: 1 }])
    );
    assert_eq!(arena.slots(0).map(SlotId::index).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(arena.slots(1).map(|slot| arena.slot_bytes(slot)).collect::<Vec<_>>(), [20_480]);
    assert_eq!((arena.slot_count(), arena.slot_at(2), arena.slot_at(3)), (3, arena.slots(1).next(), None));
    assert_eq!(Arena::bytes_for(&[SlotClass { bytes: usize::MAX / 2, count: 3 }]), usize::MAX);
    let parts = arena.parts(16_384);
    assert_eq!(parts.iter().map(|part| part.1).collect::<Vec<_>>(), [16_384, 20_480]);
    assert!(Arena::reserve(&[]).unwrap().parts(1).is_empty());
}

#[test]
fn a_pinned_slot_is_read_and_cannot_be_given_up() {
    let arena = arena();
    let slot = arena.slots(0).next().unwrap();
    assert!(matches!(arena.pin(slot), Err(Error::NotHeld { state: SlotState::Free, .. })));
    fill(&arena, slot, 7);
    let pin = arena.pin(slot).unwrap();
    assert_eq!(
        (pin.slot(), pin.slice(0), pin.slice(1), pin.slice(2)),
        (slot, Some(&[7; 100][..]), Some(&[8; 50][..]), None)
    );
    assert!(matches!(arena.evict(slot), Err(Error::SlotInUse { pins: 1, .. })));
    drop(pin);
    arena.evict(slot).unwrap();
    assert_eq!(arena.state(slot), SlotState::Free);
}

#[test]
fn a_slice_is_written_in_place_by_the_only_pin() {
    let arena = arena();
    let slot = arena.slots(0).next().unwrap();
    fill(&arena, slot, 7);
    let (mut pin, other) = (arena.pin(slot).unwrap(), arena.pin(slot).unwrap());
    assert!(matches!(pin.write(0), Err(Error::SlotInUse { pins: 2, .. })));
    drop(other);
    assert!(matches!(pin.write(2), Err(Error::NotHeld { .. })));
    let mut bytes = pin.write(0).unwrap();
    bytes[99] = 9;
    assert_eq!(bytes[98..], [7, 9]);
    assert!(matches!(arena.pin(slot), Err(Error::SlotInUse { .. })), "nobody reads what is being written");
    assert!(arena.evict(slot).is_err());
    drop(bytes);
    assert_eq!(arena.pin(slot).unwrap().slice(0).unwrap()[98..], [7, 9]);
    assert_eq!(pin.slice(1), Some(&[8; 50][..]));
}

#[test]
fn a_slice_of_a_slot_in_flight_is_read_and_written_while_the_rest_is_missing() {
    let arena = arena();
    let slot = arena.slots(0).next().unwrap();
    arena.word(slot).begin().unwrap();
    arena.place(slot, 0, 0..10);
    arena.place(slot, 1, 4096..4100);
    let mut pin = arena.pin(slot).unwrap();
    assert_eq!(pin.slice(0), None);
    arena.word(slot).land(0, false);
    pin.write(0).unwrap().fill(3);
    // SAFETY: slice 1 has not landed.
    unsafe { arena.target(slot, 4096..4100) }.bytes_mut().fill(4);
    arena.word(slot).land(1, true);
    assert_eq!((pin.slice(0), pin.slice(1)), (Some(&[3; 10][..]), Some(&[4; 4][..])));
}

#[test]
fn a_staged_expert_is_copied_into_a_slot_that_is_large_enough_and_not_in_use() {
    let arena = arena();
    let (slots, staging) = (arena.slots(0).collect::<Vec<_>>(), arena.slots(1).next().unwrap());
    fill(&arena, staging, 50);
    fill(&arena, slots[0], 60);
    let staged = arena.pin(staging).unwrap();
    let user = arena.pin(slots[0]).unwrap();
    assert!(matches!(arena.copy(&staged, slots[0]), Err(Error::SlotInUse { .. })));
    drop(user);
    for slot in slots {
        arena.copy(&staged, slot).unwrap();
        let pin = arena.pin(slot).unwrap();
        assert_eq!((pin.slice(0), pin.slice(1), pin.slice(2)), (Some(&[50; 100][..]), Some(&[51; 50][..]), None));
        assert_eq!(arena.state(slot), SlotState::Filled);
    }
    assert!(matches!(arena.copy(&staged, staging), Err(Error::SlotInUse { .. })));

    let small = Arena::reserve(&[SlotClass { bytes: 1, count: 1 }]).unwrap();
    let target = small.slots(0).next().unwrap();
    assert!(matches!(small.copy(&staged, target), Err(Error::SlotTooSmall { wanted: 4250, found: 4096, .. })));
}
