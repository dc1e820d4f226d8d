//! `s3fifo` against a slow twin written from METHOD.md's text with other data structures: plain lists that are searched.

use moce_routing::{EvictionSpec, LayerShape, Phase, RoutingOptions, Selection, SessionRouting, Start};
use proptest::prelude::*;

/// Cached experts as (id, frequency) in lists, oldest first.
struct Twin {
    capacity: usize,
    small: Vec<(u32, u32)>,
    main: Vec<(u32, u32)>,
    ghost: Vec<u32>,
}

impl Twin {
    fn new(capacity: usize, start: &[u32]) -> Self {
        let small = start.iter().map(|&expert| (expert, 0)).collect();
        Self { capacity, small, main: Vec::new(), ghost: Vec::new() }
    }

    fn cached(&self) -> Vec<u32> {
        let mut cached: Vec<u32> = self.small.iter().chain(&self.main).map(|entry| entry.0).collect();
        cached.sort_unstable();
        cached
    }

    /// Touches the experts of one token and returns those that leave, in order.
    fn token(&mut self, chosen: &[u32]) -> Vec<u32> {
        for &expert in chosen {
            let entry = self.small.iter_mut().chain(&mut self.main).find(|entry| entry.0 == expert);
            if let Some(entry) = entry {
                entry.1 = 3.min(entry.1 + 1);
            } else if self.ghost.contains(&expert) {
                self.ghost.retain(|&other| other != expert);
                self.main.push((expert, 0));
            } else {
                self.small.push((expert, 0));
            }
        }
        let mut left = Vec::new();
        while self.small.len() + self.main.len() > self.capacity {
            left.extend(self.turn(chosen));
        }
        left
    }

    /// Looks at one head; it leaves, or it stays for another turn.
    fn turn(&mut self, chosen: &[u32]) -> Option<u32> {
        let outside = |queue: &[(u32, u32)]| queue.iter().position(|entry| !chosen.contains(&entry.0));
        let (small, main) = (outside(&self.small), outside(&self.main));
        let small_is_due = self.small.len() >= 1.max(self.capacity / 10);
        match (small, main) {
            (Some(at), _) if small_is_due || main.is_none() => {
                let (expert, frequency) = self.small.remove(at);
                if frequency > 1 {
                    self.main.push((expert, 0));
                    return None;
                }
                self.ghost.push(expert);
                if self.ghost.len() > self.capacity {
                    self.ghost.remove(0);
                }
                Some(expert)
            }
            (_, Some(at)) => {
                let (expert, frequency) = self.main.remove(at);
                if frequency == 0 {
                    return Some(expert);
                }
                self.main.push((expert, frequency - 1));
                None
            }
            _ => unreachable!("the capacity is at least the token's experts"),
        }
    }
}

/// A layer, experts cached at the start, and for each token draws that pick its experts.
fn traces() -> impl Strategy<Value = (LayerShape, Vec<u32>, Vec<Vec<u32>>)> {
    (2_usize..48, 1_usize..7).prop_flat_map(|(experts, experts_per_token)| {
        let experts_per_token = experts_per_token.min(experts);
        (experts_per_token..=experts, 0_usize..=experts).prop_flat_map(move |(capacity, started)| {
            let shape = LayerShape { experts, experts_per_token, capacity };
            let all = (0..experts as u32).collect::<Vec<_>>();
            let start = Just(all).prop_shuffle().prop_map(move |ids| ids[..started.min(capacity)].to_vec());
            // Squaring the draw favours low ids, so that some experts are touched again and again and others come once.
            let id = (0.0_f64..1.0).prop_map(move |draw| (draw * draw * experts as f64) as u32);
            let token = prop::collection::vec(id, experts_per_token).prop_map(|mut ids| {
                let mut seen = Vec::new();
                ids.retain(|id| {
                    !seen.contains(id) && {
                        seen.push(*id);
                        true
                    }
                });
                ids
            });
            (Just(shape), start, prop::collection::vec(token, 1..150))
        })
    })
}

proptest! {
    #[test]
    fn equals_the_twin((shape, start, tokens) in traces()) {
        let options = RoutingOptions {
            eviction: EvictionSpec::S3Fifo,
            start: Start::Given(vec![start.clone()]),
            ..RoutingOptions::default()
        };
        let mut session = SessionRouting::new(&[shape], options).unwrap();
        let mut twin = Twin::new(shape.capacity, &start);
        let mut selection = Selection::default();
        for chosen in &tokens {
            session.replay(0, chosen, None, Phase::Generation, &mut selection).unwrap();
            prop_assert_eq!(selection.evicted(), twin.token(chosen));
            let mut cached: Vec<u32> = session.cached(0).collect();
            cached.sort_unstable();
            prop_assert_eq!(cached, twin.cached());
        }
    }
}

/// Walks through a promotion, a ghost and a second chance by hand: C = 3, small queue of 1.
#[test]
fn follows_the_text_step_by_step() {
    let shape = LayerShape { experts: 8, experts_per_token: 1, capacity: 3 };
    let options = RoutingOptions { eviction: EvictionSpec::S3Fifo, ..RoutingOptions::default() };
    let mut session = SessionRouting::new(&[shape], options).unwrap();
    let mut selection = Selection::default();
    let mut evicted = |expert: u32| {
        session.replay(0, &[expert], None, Phase::Generation, &mut selection).unwrap();
        selection.evicted().to_vec()
    };
    for expert in [0, 0, 0, 1, 2] {
        assert_eq!(evicted(expert), [], "0 has frequency 2, 1 and 2 have 0");
    }
    assert_eq!(evicted(3), [1], "0 moves to main, then 1 is the small queue's head");
    assert_eq!(evicted(1), [2], "1 comes back from the ghost list into main, small is still at its size");
    assert_eq!(evicted(4), [3], "main holds 0 and 1 now");
    assert_eq!(evicted(1), []);
    assert_eq!(evicted(2), [4], "2 was a ghost: it enters main, and 4 is the head of small");
    assert_eq!(evicted(5), [0], "small holds only 5, which is in use: main gives its head with frequency 0");
}
