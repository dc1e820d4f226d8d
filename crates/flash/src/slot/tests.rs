//! The slot protocol: every sequence of operations against a plain model, and, under `--cfg loom`, every interleaving
//! of a device, readers, a writer and an evictor.

use super::*;

/// What the protocol promises, in plain fields.
#[cfg(not(loom))]
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Model {
    state: SlotState,
    landed: [bool; 2],
    pins: u32,
    writer: bool,
}

/// All sequences up to the point where no new state of the model turns up: each operation, in each reachable state, does
/// what the model says, or refuses.
#[cfg(not(loom))]
#[test]
fn every_operation_in_every_reachable_state_is_as_the_model_says() {
    use std::collections::{HashSet, VecDeque};
    type Step = (&'static str, fn(&SlotWord) -> bool, fn(&mut Model) -> bool);
    let steps: [Step; 10] = [
        (
            "begin",
            |word| word.begin().is_ok(),
            |model| {
                let may = model.pins == 0 && !model.writer && model.state != SlotState::InFlight;
                if may {
                    *model = Model { state: SlotState::InFlight, landed: [false; 2], pins: 0, writer: false };
                }
                may
            },
        ),
        (
            "evict",
            |word| word.evict().is_ok(),
            |model| {
                let may = model.pins == 0 && !model.writer && model.state != SlotState::InFlight;
                if may {
                    *model = Model { state: SlotState::Free, landed: [false; 2], pins: 0, writer: false };
                }
                may
            },
        ),
        ("land first", |word| land(word, 0), |model| model_land(model, 0)),
        ("land second", |word| land(word, 1), |model| model_land(model, 1)),
        (
            "fail",
            |word| {
                let may = word.state() == SlotState::InFlight;
                may.then(|| word.fail(SlotState::Failed));
                may
            },
            |model| {
                let may = model.state == SlotState::InFlight;
                if may {
                    (model.state, model.landed) = (SlotState::Failed, [false; 2]);
                }
                may
            },
        ),
        (
            "acknowledge",
            |word| {
                word.acknowledge();
                true
            },
            |model| {
                if model.state == SlotState::Failed {
                    model.state = SlotState::Free;
                }
                true
            },
        ),
        // Two pins show all that more would.
        (
            "pin",
            |word| word.pins() < 2 && word.pin().is_ok(),
            |model| {
                let may =
                    model.pins < 2 && matches!(model.state, SlotState::InFlight | SlotState::Filled) && !model.writer;
                model.pins += u32::from(may);
                may
            },
        ),
        (
            "unpin",
            |word| {
                // A writer holds its own pin until it has unlocked.
                let may = word.pins() > 0 && word.0.load(Ordering::Relaxed) & WRITER == 0;
                may.then(|| word.unpin());
                may
            },
            |model| {
                let may = model.pins > 0 && !model.writer;
                model.pins -= u32::from(may);
                may
            },
        ),
        (
            "lock",
            |word| word.lock(0).is_ok(),
            |model| {
                let may = model.pins == 1 && !model.writer && model.landed[0];
                model.writer |= may;
                may
            },
        ),
        (
            "unlock",
            |word| {
                let may = word.0.load(Ordering::Relaxed) & WRITER != 0;
                may.then(|| word.unlock());
                may
            },
            |model| std::mem::take(&mut model.writer),
        ),
    ];
    let start = Model { state: SlotState::Free, landed: [false; 2], pins: 0, writer: false };
    let mut seen = HashSet::from([start.clone()]);
    let mut waiting = VecDeque::from([(start, Vec::<usize>::new())]);
    while let Some((model, path)) = waiting.pop_front() {
        for (index, (name, real, expected)) in steps.iter().enumerate() {
            let word = SlotWord::new();
            path.iter().for_each(|&step| {
                steps[step].1(&word);
            });
            let mut after = model.clone();
            let names = || path.iter().map(|&step| steps[step].0).collect::<Vec<_>>();
            assert_eq!(real(&word), expected(&mut after), "{name} after {:?}", names());
            let found = Model {
                state: word.state(),
                landed: [word.has_landed(0), word.has_landed(1)],
                pins: word.pins(),
                writer: word.0.load(Ordering::Relaxed) & WRITER != 0,
            };
            assert_eq!(found, after, "{name} after {:?}", names());
            if seen.insert(after.clone()) {
                let mut path = path.clone();
                path.push(index);
                waiting.push_back((after, path));
            }
        }
    }
    assert!(seen.len() > 20, "{} states", seen.len());
}

/// The fetcher lands a slice once, and says `last` with the last one.
#[cfg(not(loom))]
fn land(word: &SlotWord, slice: usize) -> bool {
    let may = word.state() == SlotState::InFlight && !word.has_landed(slice);
    may.then(|| word.land(slice, word.has_landed(1 - slice)));
    may
}

#[cfg(not(loom))]
fn model_land(model: &mut Model, slice: usize) -> bool {
    let may = model.state == SlotState::InFlight && !model.landed[slice];
    if may {
        model.landed[slice] = true;
        if model.landed == [true; 2] {
            model.state = SlotState::Filled;
        }
    }
    may
}

#[cfg(loom)]
mod interleavings {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    /// A slot with the bytes of two slices; loom reports every access to them that the word does not order.
    struct Slot {
        word: SlotWord,
        slices: [UnsafeCell<u32>; 2],
    }

    // SAFETY: loom checks the accesses.
    unsafe impl Send for Slot {}
    // SAFETY: loom checks the accesses.
    unsafe impl Sync for Slot {}

    impl Slot {
        fn new() -> Arc<Slot> {
            Arc::new(Slot { word: SlotWord::new(), slices: [UnsafeCell::new(0), UnsafeCell::new(0)] })
        }

        /// A fetch of expert `value`, if the slot lets it begin.
        fn fetch(&self, value: u32) -> bool {
            let began = self.word.begin().is_ok();
            if began {
                for slice in 0..2 {
                    // SAFETY: in flight and not landed: the device's alone, as loom checks.
                    self.slices[slice].with_mut(|bytes| unsafe { *bytes = value });
                    self.word.land(slice, slice == 1);
                }
            }
            began
        }

        /// What a reader finds in both slices, those that have landed.
        fn read(&self) -> Option<[Option<u32>; 2]> {
            self.word.pin().ok()?;
            let found = [0, 1].map(|slice| {
                // SAFETY: landed and pinned, as loom checks.
                self.word.has_landed(slice).then(|| self.slices[slice].with(|bytes| unsafe { *bytes }))
            });
            self.word.unpin();
            Some(found)
        }
    }

    #[test]
    fn a_reader_sees_one_expert_whole_while_the_slot_is_refilled() {
        loom::model(|| {
            let slot = Slot::new();
            assert!(slot.fetch(1));
            let reader = thread::spawn({
                let slot = slot.clone();
                move || slot.read()
            });
            let refilled = slot.fetch(2);
            if let Some(found) = reader.join().unwrap() {
                let values: Vec<u32> = found.into_iter().flatten().collect();
                assert!(values.iter().all(|&value| value == values[0]), "{found:?}");
            }
            assert!(refilled || slot.fetch(2), "a slot whose pins are gone can be refilled");
            assert_eq!(slot.read(), Some([Some(2), Some(2)]));
        });
    }

    #[test]
    fn a_writer_is_alone() {
        loom::model(|| {
            let slot = Slot::new();
            assert!(slot.fetch(1));
            let other = thread::spawn({
                let slot = slot.clone();
                move || (slot.read(), slot.word.evict().is_ok())
            });
            let mut wrote = false;
            if slot.word.pin().is_ok() {
                if slot.word.lock(0).is_ok() {
                    // SAFETY: the only pin, with the writer bit, as loom checks.
                    slot.slices[0].with_mut(|bytes| unsafe { *bytes += 10 });
                    slot.word.unlock();
                    wrote = true;
                }
                slot.word.unpin();
            }
            let (seen, evicted) = other.join().unwrap();
            if let Some(found) = seen {
                assert!(found == [Some(1), Some(1)] || found == [Some(11), Some(1)], "{found:?}");
            }
            if !evicted {
                assert_eq!(slot.read(), Some([Some(if wrote { 11 } else { 1 }), Some(1)]));
            }
        });
    }

    #[test]
    fn a_failed_fetch_leaves_the_landed_slice_to_its_reader() {
        loom::model(|| {
            let slot = Slot::new();
            let reader = thread::spawn({
                let slot = slot.clone();
                move || slot.read()
            });
            slot.word.begin().unwrap();
            // SAFETY: in flight and not landed, as loom checks.
            slot.slices[0].with_mut(|bytes| unsafe { *bytes = 5 });
            slot.word.land(0, false);
            slot.word.fail(SlotState::Failed);
            slot.word.acknowledge();
            let again = slot.fetch(6);
            if let Some([first, second]) = reader.join().unwrap() {
                assert!(matches!(first, None | Some(5 | 6)), "{first:?}");
                assert!(matches!(second, None | Some(6)), "{second:?}");
            }
            assert!(again || slot.fetch(6));
        });
    }
}
