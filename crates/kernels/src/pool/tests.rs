//! The pool on real threads, and, under `--cfg loom`, the interleavings of a small one (naps apart, which only save time).

use super::*;

#[cfg(not(loom))]
mod real {
    use super::*;
    use std::panic::catch_unwind;
    use std::ptr;
    use std::sync::atomic::AtomicUsize;
    use std::time::{Duration, Instant};

    #[test]
    fn split_covers_everything_once_and_evenly() {
        for count in 0..40 {
            for parts in 1..9 {
                let ranges: Vec<_> = (0..parts).map(|index| split(count, parts, index)).collect();
                assert_eq!(ranges.iter().cloned().flatten().collect::<Vec<_>>(), (0..count).collect::<Vec<_>>());
                let sizes = ranges.iter().map(ExactSizeIterator::len);
                assert!(sizes.clone().max().unwrap() - sizes.min().unwrap() <= 1);
            }
        }
    }

    #[test]
    fn every_part_runs_once_in_every_region() {
        for threads in [1, 2, 3, 5] {
            let pool = Pool::new(threads).unwrap();
            assert_eq!(pool.threads(), threads);
            let counts: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
            let rounds = 20_000 / threads;
            for round in 0..rounds {
                pool.run(&|index| {
                    counts[index].fetch_add(1, Ordering::Relaxed);
                });
                // All are done when `run` returns.
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == round + 1));
                if round % 1000 == 0 {
                    std::thread::sleep(Duration::from_micros(200)); // let the workers fall asleep
                }
            }
        }
    }

    #[test]
    fn slow_workers_are_waited_for_and_woken() {
        let pool = Pool::new(3).unwrap();
        for _ in 0..10 {
            let slow = AtomicUsize::new(0);
            pool.run(&|index| {
                std::thread::sleep(Duration::from_millis(index as u64));
                slow.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(slow.load(Ordering::Relaxed), 3);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_after_all_parts_and_the_pool_lives_on() {
        let pool = Pool::new(3).unwrap();
        for bad in 0..3 {
            let finished = AtomicUsize::new(0);
            let panic = catch_unwind(AssertUnwindSafe(|| {
                pool.run(&|index| {
                    if index == bad {
                        panic!("part {index}");
                    }
                    std::thread::sleep(Duration::from_millis(1));
                    finished.fetch_add(1, Ordering::Relaxed);
                });
            }))
            .unwrap_err();
            assert_eq!(panic.downcast_ref::<String>().unwrap(), &format!("part {bad}"));
            assert_eq!(finished.load(Ordering::Relaxed), 2);
        }
        let sum = AtomicUsize::new(0);
        pool.run(&|index| {
            sum.fetch_add(index, Ordering::Relaxed);
        });
        assert_eq!(sum.load(Ordering::Relaxed), 3);
    }

    /// A payload whose drop panics, too, is not dropped where a region would end before its parts.
    #[test]
    fn panics_on_all_threads_reach_the_caller_as_one() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("dropped");
            }
        }
        let pool = Pool::new(3).unwrap();
        for _ in 0..10 {
            let payload = catch_unwind(AssertUnwindSafe(|| pool.run(&|_| std::panic::panic_any(Bomb)))).unwrap_err();
            assert!(payload.is::<Bomb>());
            std::mem::forget(payload);
        }
        let parts = AtomicUsize::new(0);
        pool.run(&|_| {
            parts.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(parts.into_inner(), 3);
    }

    #[test]
    fn a_region_inside_a_region_or_beside_it_is_done_by_its_caller() {
        let pool = Pool::new(2).unwrap();
        let parts = AtomicUsize::new(0);
        pool.run(&|_| {
            pool.run(&|_| {
                parts.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(parts.load(Ordering::Relaxed), 4);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        pool.run(&|_| {
                            parts.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(parts.load(Ordering::Relaxed), 4 + 2 * 2000 * 2);
    }

    #[test]
    fn dropping_a_pool_ends_its_threads() {
        let shared = {
            let pool = Pool::new(4).unwrap();
            let shared = Arc::clone(&pool.shared);
            assert_eq!(Arc::strong_count(&shared), 5);
            shared
        };
        assert_eq!(Arc::strong_count(&shared), 1);
        drop(Pool::new(3).unwrap());
    }

    /// Nothing but the starter, and a worker that comes when all is over.
    #[test]
    fn who_does_not_come_keeps_nobody_waiting() {
        let (handoff, job) = (Handoff::new(3, 3), ptr::NonNull::dangling().as_ptr());
        for region in 1..4 {
            let generation = handoff.start(job);
            assert_eq!(generation, region);
            for part in 0..3 {
                assert_eq!(handoff.take(generation, 0), Some((part, job)));
                handoff.part_done(generation, part);
            }
            handoff.wait_until_done(generation);
            assert_eq!(handoff.take(generation, 2), None);
        }
        let generation = handoff.start(job);
        assert_eq!(handoff.take(generation - 1, 1), None, "it has missed that one");
        assert_eq!(handoff.take(generation, 1), Some((1, job)), "its own part first");
        assert_eq!(handoff.take(generation, 1), Some((2, job)));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn who_shares_the_starters_processor_leaves_it_alone() {
        std::thread::spawn(|| {
            let first = allowed_processors()[0];
            let pool = Pool::with_affinity(3, Some(&[first; 3])).unwrap();
            let _bound = pool.bind_caller().unwrap();
            let starter = std::thread::current().id();
            let regions = 200;
            for _ in 0..regions {
                pool.run(&|_| {
                    assert_eq!(std::thread::current().id(), starter);
                    std::thread::sleep(Duration::from_micros(20));
                });
            }
            // Where nothing is started any more, nobody goes on napping.
            let began = Instant::now();
            while pool.shared.handoff.sleeping() < 2 {
                assert!(began.elapsed() < Duration::from_secs(60), "a worker never went to sleep");
                std::thread::sleep(Duration::from_millis(1));
            }
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_processor_that_is_listed_twice_runs_one_thread_at_once() {
        assert_eq!((distinct(&[3, 1, 3]), distinct(&[0, 2]), distinct(&[])), (2, 2, 0));
    }

    #[cfg(target_os = "linux")]
    fn allowed_processors() -> Vec<usize> {
        let set = rustix::thread::sched_getaffinity(None).unwrap();
        (0..rustix::thread::CpuSet::MAX_CPU).filter(|&processor| set.is_set(processor)).collect()
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn affinity_binds_every_worker_and_names_what_is_wrong() {
        std::thread::spawn(|| {
            let allowed = allowed_processors();
            let (first, last) = (allowed[0], allowed[allowed.len() - 1]);
            let pool = Pool::with_affinity(2, Some(&[first, last])).unwrap();
            let _bound = pool.bind_caller();
            let caller = std::thread::current().id();
            let worker_came = AtomicBool::new(false);
            let began = Instant::now();
            // On one processor the worker leaves all parts to the caller.
            while first != last && !worker_came.load(Ordering::Relaxed) {
                assert!(began.elapsed() < Duration::from_secs(60), "the worker never took a part");
                pool.run(&|_| {
                    let set = rustix::thread::sched_getaffinity(None).unwrap();
                    let is_caller = std::thread::current().id() == caller;
                    assert!(set.count() == 1 && set.is_set(if is_caller { first } else { last }));
                    worker_came.fetch_or(!is_caller, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_micros(100));
                });
            }
            assert!(matches!(
                Pool::with_affinity(2, Some(&[first])),
                Err(Error::AffinityTooShort { threads: 2, processors: 1 })
            ));
            for bad in [1023, usize::MAX] {
                let error = Pool::with_affinity(2, Some(&[first, bad])).unwrap_err();
                assert!(error.to_string().contains(&bad.to_string()), "{error}");
            }
        })
        .join()
        .unwrap();
    }
}

#[cfg(loom)]
mod model {
    use super::*;
    use loom::cell::UnsafeCell;

    struct Cells(Vec<UnsafeCell<usize>>);
    // SAFETY: each part touches its own cell, and loom reports any access that is not ordered.
    unsafe impl Sync for Cells {}

    fn check(threads: usize, regions: usize, preemptions: usize) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(preemptions);
        builder.check(move || {
            let pool = Pool::new(threads).unwrap();
            let cells = Cells((0..threads).map(|_| UnsafeCell::new(0)).collect());
            for region in 0..regions {
                let cells = &cells;
                pool.run(&move |index| {
                    // SAFETY: exclusive, as loom checks.
                    cells.0[index].with_mut(|value| unsafe { *value += 1 });
                });
                for cell in &cells.0 {
                    // SAFETY: all parts are done, as loom checks.
                    assert_eq!(cell.with(|value| unsafe { *value }), region + 1);
                }
            }
        });
    }

    #[test]
    fn two_threads_two_regions() {
        check(2, 2, 2);
    }

    #[test]
    fn three_threads_one_region() {
        check(3, 1, 1);
    }
}
