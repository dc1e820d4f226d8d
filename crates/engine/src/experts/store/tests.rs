//! The store on flash that misbehaves: what is computed with is always the right expert, whole; a step that fails leaves nothing behind.

use super::*;
use crate::experts::ProjectionShape;
use moce_flash::{Backend, Fault, Faults, Files, ModelFile, Options};
use moce_kernels::Layout;
use moce_quant::Format;
use std::sync::Mutex;

const LAYERS: usize = 2;
const EXPERTS: usize = 6;
const ROWS: usize = 8;
const COLUMNS: usize = 16;
const SLICE_BYTES: usize = ROWS * COLUMNS * 4;
const BLOCK_BYTES: usize = 512;

/// A byte of the file; neighbouring slices differ.
fn byte(at: usize) -> u8 {
    (at % 251) as u8
}

fn start(layer: MoeLayer, expert: u32, slice: usize) -> usize {
    ((layer.0 * EXPERTS + expert as usize) * PROJECTIONS + slice) * SLICE_BYTES
}

fn catalogue(layer: usize) -> LayerCatalogue {
    let projections = std::array::from_fn(|slice| ProjectionShape {
        format: Format::F32,
        rows: ROWS,
        columns: COLUMNS,
        layout: Layout::Plain,
        bytes: SLICE_BYTES,
        part: 0,
        offset: start(MoeLayer(layer), 0, slice) as u64,
        stride: (PROJECTIONS * SLICE_BYTES) as u64,
    });
    LayerCatalogue { block: layer, count: EXPERTS, projections }
}

/// A store of two layers with so many slots each, and the faults of its device.
fn store(slots: usize, staging: usize) -> (ExpertStore, Arc<Mutex<Faults>>) {
    let bytes = (0..LAYERS * EXPERTS * PROJECTIONS * SLICE_BYTES).map(byte).collect();
    let files = Arc::new(Files::new(vec![ModelFile::in_memory("model", bytes, BLOCK_BYTES)]));
    let layers: Vec<LayerCatalogue> = (0..LAYERS).map(catalogue).collect();
    let slots = [slots; LAYERS];
    let options = StoreOptions { layers: &layers, slots: &slots, staging, block_bytes: BLOCK_BYTES };
    let arena = Arc::new(Arena::reserve(&options.classes()).unwrap());
    let faults = Arc::new(Mutex::new(Faults::default()));
    let pread = Options { backend: Backend::Pread, ..Options::default() };
    let fetcher = Fetcher::faulty(files, Arc::clone(&arena), &pread, Arc::clone(&faults), 1).unwrap();
    (ExpertStore::new(&options, arena, Some(fetcher)), faults)
}

fn set(faults: &Mutex<Faults>, to: Faults) {
    *faults.lock().unwrap() = to;
}

fn bad() -> Faults {
    Faults { bad_ranges: vec![(0, 0..u64::MAX)], ..Faults::default() }
}

/// A layer's part of a step, as the mixture of experts goes through it; every matrix is looked at.
fn step(store: &mut ExpertStore, layer: MoeLayer, needed: &[u32]) -> Result<(), Error> {
    store.begin(layer, needed)?;
    let mut computed = Vec::new();
    while let Some(group) = store.next_group(layer, 4) {
        for projection in [Projection::Up, Projection::Down] {
            store.wait(layer, &group, projection)?;
            for &expert in store.ids(&group) {
                let pinned = store.pin(layer, expert)?;
                let at = start(layer, expert, projection as usize);
                let expected: Vec<u8> = (at..at + SLICE_BYTES).map(byte).collect();
                assert!(pinned.matrix(projection).bytes == expected, "expert {expert} of layer {}", layer.0);
            }
        }
        computed.extend_from_slice(store.ids(&group));
        store.finish_group(layer, group)?;
    }
    computed.sort_unstable();
    assert_eq!(computed, needed);
    Ok(())
}

#[test]
fn a_guess_that_could_not_be_read_is_read_again_when_it_is_needed() {
    // Without slots of its own, the layer runs from staging, where the guess went, too.
    let (mut store, faults) = store(0, 2);
    set(&faults, bad());
    store.prefetch(MoeLayer(1), &[2]).unwrap();
    while !store.fetcher.as_ref().unwrap().is_idle() {
        store.poll().unwrap();
        std::thread::yield_now();
    }
    set(&faults, Faults::default());
    step(&mut store, MoeLayer(1), &[2]).unwrap();
}

#[test]
fn a_step_that_ends_half_way_keeps_no_slot() {
    let (mut store, faults) = store(2, 2);
    for expert in 0..4 {
        store.hold(MoeLayer(0), expert);
    }
    // One that its caller gave up, and one that could not be read.
    store.begin(MoeLayer(0), &[0, 1]).unwrap();
    store.abandon();
    set(&faults, bad());
    let error = step(&mut store, MoeLayer(0), &[2, 4]).unwrap_err().to_string();
    assert!(error.starts_with("reading model at offset"), "{error}");
    store.abandon();
    set(&faults, Faults::default());
    for expert in 0..2 {
        store.release(MoeLayer(0), expert);
    }
    step(&mut store, MoeLayer(0), &[2, 3]).unwrap();
    assert!([2, 3].iter().all(|&expert| store.layers[0].find(expert).is_some()), "they have slots of their layer");
}

/// A warm start may have asked for gigabytes. Here a demand on the device keeps its reads from beginning.
#[test]
fn a_step_that_failed_waits_for_nothing_that_has_not_begun() {
    let (mut store, _) = store(3, 2);
    store.begin(MoeLayer(0), &[0]).unwrap();
    store.read_in_idle_time(MoeLayer(1), 0..3).unwrap();
    store.abandon();
    assert_eq!(store.traffic().flash_bytes, (PROJECTIONS * SLICE_BYTES) as u64, "the bytes of the demand");
    assert!((0..3).all(|expert| store.layers[1].find(expert).is_none()));
    step(&mut store, MoeLayer(1), &[0, 1, 2, 3]).unwrap();
}

#[test]
fn an_expert_takes_the_slot_of_one_that_nobody_keeps_and_that_is_not_being_read_yet() {
    let (mut store, _) = store(2, 2);
    (0..2).for_each(|expert| store.hold(MoeLayer(1), expert));
    store.begin(MoeLayer(0), &[0]).unwrap();
    store.read_in_idle_time(MoeLayer(1), 0..2).unwrap();
    store.release(MoeLayer(1), 1);
    store.hold(MoeLayer(1), 2);
    store.begin(MoeLayer(1), &[2]).unwrap();
    let found = [0, 1, 2].map(|expert| store.layers[1].find(expert).is_some());
    assert_eq!(found, [true, false, true]);
    store.abandon();
    step(&mut store, MoeLayer(1), &[0, 1, 2]).unwrap();
}

/// Two sessions, or one whose logical cache is larger than the layer: no slot will be nobody's, so that waiting for one would only put the
/// reads one behind the other.
#[test]
fn reads_begin_at_once_where_every_slot_is_of_an_expert_that_is_kept() {
    let (mut store, _) = store(3, 2);
    (0..EXPERTS as u32).for_each(|expert| store.hold(MoeLayer(0), expert));
    step(&mut store, MoeLayer(0), &[0, 1, 2]).unwrap();
    let before = store.traffic().fetches;
    store.begin(MoeLayer(0), &[0, 3, 4]).unwrap();
    assert_eq!(store.traffic().fetches - before, 2);
    assert!(store.layers[0].find(0).is_some(), "it is about to be computed");
    store.abandon();
    // Also where one more is needed than there are slots.
    step(&mut store, MoeLayer(0), &[0, 1, 2, 5]).unwrap();
}

#[test]
fn an_expert_that_is_kept_waits_for_a_slot_that_will_be_nobodys() {
    let (mut store, _) = store(3, 2);
    step(&mut store, MoeLayer(0), &[0, 1, 2]).unwrap();
    (1..4).for_each(|expert| store.hold(MoeLayer(0), expert));
    step(&mut store, MoeLayer(0), &[0, 3]).unwrap();
    assert!((1..4).all(|expert| store.layers[0].find(expert).is_some()), "what is kept has stayed");
}

/// A window after a restart finds the experts of the window before: nobody holds them, but nearly all are needed.
#[test]
fn reading_ahead_pushes_out_nothing_that_is_resident() {
    const SLOTS: usize = EXPERTS / 2;
    let (mut store, _) = store(SLOTS, 2);
    let all: Vec<u32> = (0..EXPERTS as u32).collect();
    for (window, expected) in [EXPERTS, EXPERTS - SLOTS, EXPERTS - SLOTS].into_iter().enumerate() {
        let before = store.traffic().fetches;
        store.read_ahead(MoeLayer(0)).unwrap();
        (0..SLOTS as u32).for_each(|expert| store.hold(MoeLayer(0), expert));
        step(&mut store, MoeLayer(0), &all).unwrap();
        (0..SLOTS as u32).for_each(|expert| store.release(MoeLayer(0), expert));
        assert_eq!(store.traffic().fetches - before, expected as u64, "window {window}");
    }
}

#[test]
fn whatever_happens_the_right_expert_is_computed_with() {
    let (mut done, mut failed) = (0, 0);
    for seed in 0..20_u64 {
        let mut state = seed;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        let (mut store, faults) = store([0, 2, 3, 5][random(4)], 2 + random(3));
        let mut held = [[false; EXPERTS]; LAYERS];
        for _ in 0..150 {
            let layer = MoeLayer(random(LAYERS));
            let needed: Vec<u32> = (0..EXPERTS as u32).filter(|_| random(3) == 0).collect();
            set(&faults, Faults { errors: [0.0, 0.35][random(2)], short: 0.2, delays: 0.2, ..Faults::default() });
            if random(8) == 0 {
                let schedule = (0..4).map(|_| (random(1000) as u64, Fault::Error(5))).collect();
                set(&faults, Faults { schedule, ..Faults::default() });
            }
            let expert = random(EXPERTS);
            match random(6) {
                0 => store.read_ahead(layer).unwrap(),
                1 => store.read_in_idle_time(layer, (0..EXPERTS as u32).skip(expert)).unwrap(),
                2 => store.prefetch(layer, &[expert as u32]).unwrap(),
                3 if std::mem::replace(&mut held[layer.0][expert], false) => store.release(layer, expert as u32),
                3 => {}
                _ if std::mem::replace(&mut held[layer.0][expert], true) => {}
                _ => store.hold(layer, expert as u32),
            }
            match step(&mut store, layer, &needed) {
                Ok(()) => done += 1,
                Err(_) => {
                    store.abandon();
                    failed += 1;
                }
            }
        }
    }
    assert!(done > 1000 && failed > 100, "{done} steps done, {failed} failed");
}
