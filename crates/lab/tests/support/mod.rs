//! Asking questions of a tiny model.

use moce_engine::routing::{Policy, RoutingOptions};
use moce_engine::{Budget, Capacity, CpuOptions, Engine, EngineOptions, KvType, Session};
use moce_gguf::Value;
use moce_lab::evaluation::{Outcome, Task, evaluate};
use moce_testkit::{TinyModel, Variant, variant};
use std::ops::ControlFlow;
use std::sync::Arc;

/// The tiny model with another context length.
pub(crate) fn open(context: u32, policy: &str) -> Arc<Engine> {
    let tiny = TinyModel::open("qwen2moe");
    let longer = Variant {
        metadata: &[("qwen2moe.context_length", Some(Value::U32(context)))],
        tensor: &|tensor, bytes| (tensor.tensor_type(), bytes),
    };
    let policy = Policy::parse(policy, |_| unreachable!("no files")).unwrap();
    let options = EngineOptions {
        cpu: CpuOptions { threads: Some(2), ..CpuOptions::default() },
        memory: Budget::All,
        capacity: Some(Capacity::Share(0.5)),
        routing: RoutingOptions { prompt_policy: policy.clone(), policy, ..RoutingOptions::default() },
        kv: KvType::F32,
        ..EngineOptions::default()
    };
    Arc::new(Engine::load(&variant(&tiny.gguf, &longer), &options).unwrap())
}

/// The outcomes of the wanted questions, by subject and question.
pub(crate) fn ask(engine: &Arc<Engine>, task: &Task, wanted: &dyn Fn(usize) -> bool) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    let mut session = Session::new(engine).unwrap();
    evaluate(&mut session, task, &|_, question| wanted(question.index), &mut |outcome| {
        outcomes.push(outcome);
        Ok(ControlFlow::Continue(()))
    })
    .unwrap();
    outcomes.sort_by(|a, b| (&a.subject, a.question).cmp(&(&b.subject, b.question)));
    outcomes
}
