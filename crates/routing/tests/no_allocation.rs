//! After a session is made and a selection has room, routing allocates nothing: it runs in the token's path.

use moce_routing::{LayerShape, Phase, RouterScores, RoutingOptions, Selection, SessionRouting};

#[test]
fn a_step_allocates_nothing() {
    let shape = LayerShape { experts: 60, experts_per_token: 4, capacity: 15 };
    let row =
        |token: u32| -> Vec<f32> { (0..60).map(|expert| ((expert * 37 + token * 11) % 61) as f32 / 8.0).collect() };
    let rows: Vec<Vec<f32>> = (0..200).map(row).collect();
    let candidates: Vec<u32> = (0..40).collect();
    let policies = ["original", "prune:k=2", "drop-cold", "swap:rank=2,seed=3", "max-rank", "cumulative", "balanced"];
    for policy in policies {
        for eviction in ["lru", "lfu", "score", "s3fifo"] {
            let policy: moce_routing::Policy = policy.parse().unwrap();
            let options = RoutingOptions {
                policy: policy.clone(),
                prompt_policy: policy,
                eviction: eviction.parse().unwrap(),
                ..RoutingOptions::default()
            };
            let mut session = SessionRouting::new(&[shape], options).unwrap();
            let mut selection = Selection::with_capacity(4);
            let mut misses = 0;
            let counted = allocation_counter::measure(|| {
                for row in &rows {
                    session.route(0, row, Phase::Prompt, &mut selection).unwrap();
                    misses += selection.misses().count();
                    let grouped = RouterScores { candidates: Some(&candidates), ..row.into() };
                    session.route(0, grouped, Phase::Generation, &mut selection).unwrap();
                }
            });
            assert_eq!(counted.count_total, 0, "{} with {eviction}", session.options().policy);
            assert!(misses > 100, "a run without misses shows little");
        }
    }
}
