//! Going back to a snapshot and on is the same as never having run what came between.

#![allow(clippy::unwrap_used)] // clippy sees tests only in functions marked as such, not in their helpers

use moce_engine::routing::{Phase, Policy, RoutingOptions};
use moce_engine::{Capacity, CpuOptions, Engine, EngineOptions, Error, Session};
use moce_testkit::TinyModel;
use std::sync::Arc;

fn open() -> (Arc<Engine>, Vec<u32>) {
    let policy = Policy::parse("cache-prior:lambda=0.5,j=1", |_| unreachable!("no files")).unwrap();
    let options = EngineOptions {
        cpu: CpuOptions { threads: Some(1), ..CpuOptions::default() },
        capacity: Some(Capacity::Experts(6)),
        sessions: 2,
        routing: RoutingOptions { prompt_policy: policy.clone(), policy, ..RoutingOptions::default() },
        ..EngineOptions::default()
    };
    let TinyModel { gguf, tokens, .. } = TinyModel::open("qwen2moe");
    (Arc::new(Engine::load(&gguf, &options).unwrap()), tokens)
}

#[test]
fn what_came_between_leaves_no_trace() {
    let (engine, tokens) = open();
    let (prefix, rest) = tokens.split_at(30);
    let (first, second) = rest.split_at(25);
    let mut session = Session::new(&engine).unwrap();
    session.prompt(prefix).unwrap();
    let snapshot = session.snapshot();
    for question in [first, second, first] {
        session.go_back(&snapshot).unwrap();
        assert_eq!(session.position(), 30);
        session.prompt(question).unwrap();

        let mut alone = Session::new(&engine).unwrap();
        alone.prompt(&[prefix, question].concat()).unwrap();
        assert_eq!(session.logits(), alone.logits());
        let (going_back, alone) = (session.routing(), alone.routing());
        assert_eq!(going_back.total(Phase::Prompt), alone.total(Phase::Prompt));
        assert!((0..2).all(|layer| going_back.cached(layer).eq(alone.cached(layer))));
    }
}

#[test]
fn overwritten_and_foreign_snapshots_are_refused() {
    let (engine, tokens) = open();
    let mut session = Session::new(&engine).unwrap();
    let start = session.snapshot();
    session.prompt(&tokens[..20]).unwrap();
    let early = session.snapshot();
    session.prompt(&tokens[20..40]).unwrap();
    let late = session.snapshot();
    session.go_back(&late).unwrap();
    session.go_back(&early).unwrap();
    let gone = |outcome| matches!(outcome, Err(Error::SnapshotGone { .. }));
    assert!(gone(session.go_back(&late)), "nothing is there any more");
    session.prompt(&tokens[40..]).unwrap();
    assert!(gone(session.go_back(&late)), "other tokens are there");
    session.go_back(&early).unwrap();
    session.go_back(&start).unwrap();
    assert!(gone(session.go_back(&early)));
    session.go_back(&start).unwrap();
    session.prompt(&tokens[..20]).unwrap();
    assert!(gone(Session::new(&engine).unwrap().go_back(&start)), "another session's");
    session.restart();
    assert!(gone(session.go_back(&early)));
}

#[test]
fn policies_are_not_taken_back() {
    let (engine, tokens) = open();
    let mut session = Session::new(&engine).unwrap();
    session.prompt(&tokens[..20]).unwrap();
    let snapshot = session.snapshot();
    session.set_policy(Policy::Original).unwrap();
    let prompt_policy = session.routing().options().prompt_policy.clone();
    session.go_back(&snapshot).unwrap();
    assert_eq!(session.routing().options().policy, Policy::Original);
    assert_eq!(session.routing().options().prompt_policy, prompt_policy);
}
