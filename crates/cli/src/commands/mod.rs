//! One file per command: read the options, make one call, print the result.

pub(crate) mod bench;
pub(crate) mod completions;
pub(crate) mod eval;
pub(crate) mod inspect;
pub(crate) mod logits;
pub(crate) mod man;
pub(crate) mod pack;
pub(crate) mod perplexity;
pub(crate) mod plan;
pub(crate) mod run;
pub(crate) mod simulate;
pub(crate) mod sweep;
pub(crate) mod tokenize;
pub(crate) mod trace;
pub(crate) mod tune;
pub(crate) mod verify;

use crate::arguments::{Global, ModelOptions, RoutingPrompt};
use crate::{model_path, report};
use anyhow::bail;
use moce_engine::routing::Policy;
use moce_engine::{Engine, EngineOptions, Tokenizer, packed};
use moce_gguf::Gguf;
use moce_lab::Profile;
use serde::Serialize;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// What text and figures depend on beside routing, capacity and eviction: a part of what `--json` prints.
#[derive(Serialize)]
struct Setting {
    version: &'static str,
    model: String,
    kv: String,
    touch: String,
    start: String,
}

impl Setting {
    fn of(engine: &Engine) -> Setting {
        Setting {
            version: env!("CARGO_PKG_VERSION"),
            model: engine.path().display().to_string(),
            kv: engine.plan().kv_type.to_string(),
            touch: engine.routing().touch.to_string(),
            start: engine.routing().start.to_string(),
        }
    }
}

/// Refuses the name of a file that could not be written, before any work is done for it.
fn check_target(path: &Path) -> anyhow::Result<()> {
    if path.is_dir() {
        bail!("{} is a folder; give the name of a file", path.display());
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir());
    if let Some(folder) = folder {
        bail!("cannot write {}: there is no folder {}", path.display(), folder.display());
    }
    Ok(())
}

/// Says that a vocabulary has no tokens for some of a text, which the model then does not see.
fn say_what_is_lost(tokenizer: &Tokenizer, text: &str) {
    let lost = tokenizer.lost_bytes(text);
    if lost > 0 {
        report::say(format_args!("bytes without a token in this model's vocabulary, which are left out: {lost}"));
    }
}

/// Writes what `--json` prints: a document on a line.
fn write_json(output: &mut impl Write, document: &(impl Serialize + ?Sized)) -> std::io::Result<()> {
    serde_json::to_writer(&mut *output, document)?;
    writeln!(output)
}

/// Opens the model that a command was given and says in one line what runs.
fn open_engine(
    model: Option<&Path>,
    options: &ModelOptions,
    global: &Global,
    routing_prompt: RoutingPrompt,
    adjust: impl FnOnce(&mut EngineOptions),
) -> anyhow::Result<Arc<Engine>> {
    let path = model_path::resolve(model)?;
    let (mut options, profile) = options.engine_options(routing_prompt, || model_context(&path))?;
    adjust(&mut options);
    let gguf = Gguf::open(&path)?;
    if let Some(profile) = &profile {
        profile.check(Engine::identity_of(&gguf)?)?;
    }
    let engine = Engine::load(&gguf, &options)?;
    announce(&engine, profile.as_ref(), global);
    Ok(Arc::new(engine))
}

/// Says in one line what runs, and in a second one if that is lossy.
fn announce(engine: &Engine, profile: Option<&Profile>, global: &Global) {
    if global.quiet {
        return;
    }
    report::say(report::dim(&start_line(engine)));
    let (policy, prompt) = (&engine.routing().policy, &engine.routing().prompt_policy);
    if *policy == Policy::Original && *prompt == Policy::Original {
        return;
    }
    if engine.plan().experts.is_empty() {
        report::say("the model has no experts, so there is no routing and --routing does nothing");
        return;
    }
    // Lossy is loud.
    let price = match profile {
        Some(profile) => {
            let kv = engine.plan().kv_type.to_string();
            let other = if profile.kv == kv { String::new() } else { format!(" with --kv {}", profile.kv) };
            format!(
                "measured on this model{other}: perplexity {:+.2} %, at most {:+.2} %",
                100.0 * profile.measured.perplexity_rise,
                100.0 * profile.measured.perplexity_rise_upper
            )
        }
        None => "not measured on this model: `moce tune` measures it".to_owned(),
    };
    report::say(format_args!(
        "routing: {policy} (prompt: {prompt}): the text may differ from the model's own; what that costs is {price}"
    ));
    if leans_in_vain(engine) {
        report::say(IN_VAIN);
    }
}

/// What is said where [`leans_in_vain`] is true.
const IN_VAIN: &str = "every expert of a layer fits in its cache: once all have run, leaning changes and saves nothing";

/// Whether the policy leans towards cached experts, and all will be.
fn leans_in_vain(engine: &Engine) -> bool {
    let routing = engine.routing();
    let leans = [&routing.policy, &routing.prompt_policy].iter().any(|policy| policy.looks_at_the_cache());
    leans && !engine.plan().experts.is_empty() && engine.plan().capacity == engine.plan().experts
}

/// The context length that the model was made for.
fn model_context(path: &Path) -> anyhow::Result<usize> {
    let gguf = Gguf::open(path)?;
    let architecture = packed::architecture(&gguf)?;
    Ok(gguf.metadata().u32(&format!("{architecture}.context_length"))? as usize)
}

fn start_line(engine: &Engine) -> String {
    let h = engine.hyperparameters();
    let network = match h.experts {
        Some(experts) => format!("{} experts, {} a token", experts.count, experts.per_token),
        None => "dense".to_owned(),
    };
    let stem = engine.path().file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let name = stem.split_once("-00001-of-").map_or(stem.as_str(), |(name, _)| name);
    let mode = if engine.plan().streams() { streaming(engine) } else { "everything resident".to_owned() };
    format!(
        "moce {} | {name}: {}, {} layers, {network} | {}, {} threads | {mode}, {} planned, context {}",
        env!("CARGO_PKG_VERSION"),
        h.architecture,
        h.layers,
        engine.cpu().isa(),
        engine.cpu().threads(),
        report::size(engine.plan().total_bytes()),
        engine.context(),
    )
}

/// How many experts stay in memory, and how the others are read.
fn streaming(engine: &Engine) -> String {
    let plan = engine.plan();
    let experts = plan.experts.iter().max().copied().unwrap_or(0);
    format!("streaming: {} of {experts} experts cached a layer, {}", report::capacity(&plan.resident), engine.flash())
}
