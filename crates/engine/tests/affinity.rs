//! Which threads are bound to a processor where a list of them is given: those that compute, and the caller only while it does.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // clippy sees tests only in functions marked as such, not in their helpers

use moce_engine::{
    Backend, Capacity, CpuOptions, Engine, EngineOptions, Error, FlashOptions, ObservedStep, RoutingObserver, Session,
};
use moce_quant::Format;
use moce_routing::Selection;
use moce_testkit::ModelFile;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Notes the processors of the thread that computes.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<String>>>);

impl RoutingObserver for Seen {
    fn begin(&mut self, _: &ObservedStep<'_>) {}

    fn routed(&mut self, _: usize, _: usize, _: &[f32], _: &Selection) {
        self.0.lock().unwrap().push(processors(Path::new("/proc/thread-self")));
    }

    fn end(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), Error> {
        Ok(())
    }
}

/// The processors that a thread may run on, such as `0-3`.
fn processors(thread: &Path) -> String {
    let status = fs::read_to_string(thread.join("status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim().to_owned()
}

#[test]
fn the_caller_is_bound_while_a_step_runs_and_reading_threads_are_not() {
    let before = processors(Path::new("/proc/thread-self"));
    let first: usize = before.split([',', '-']).next().unwrap().parse().unwrap();
    let model = ModelFile::new("qwen2moe", Format::Q4_0);
    let options = EngineOptions {
        cpu: CpuOptions { affinity: Some(vec![first, first]), ..CpuOptions::default() },
        capacity: Some(Capacity::Experts(3)),
        flash: FlashOptions { backend: Backend::Pread, ..FlashOptions::default() },
        ..EngineOptions::default()
    };
    let engine = Arc::new(Engine::open(&model.path, &options).unwrap());
    let mut session = Session::new(&engine).unwrap();
    let seen = Seen::default();
    session.observe(Box::new(seen.clone()));
    session.prompt(&model.tokens).unwrap();
    let seen = std::mem::take(&mut *seen.0.lock().unwrap());
    assert!(!seen.is_empty() && seen.iter().all(|processors| *processors == first.to_string()), "{seen:?}");
    assert_eq!(processors(Path::new("/proc/thread-self")), before);
    let threads: Vec<PathBuf> = fs::read_dir("/proc/self/task").unwrap().map(|thread| thread.unwrap().path()).collect();
    for (name, expected) in [("moce-read", before), ("moce-compute", first.to_string())] {
        let named = threads.iter().filter(|thread| fs::read_to_string(thread.join("comm")).unwrap().starts_with(name));
        let found: Vec<String> = named.map(|thread| processors(thread)).collect();
        assert!(!found.is_empty() && found.iter().all(|found| *found == expected), "{name}: {found:?}");
    }
}
