//! Generates text with the library: `cargo run --release -p moce-engine --example generate -- MODEL.gguf PROMPT`.

use moce_engine::{Engine, EngineOptions, GenerateOptions, Sampler, SamplerOptions, Session, generate};
use std::error::Error;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(model), Some(prompt)) = (arguments.next(), arguments.next()) else {
        return Err("give a GGUF file and a prompt".into());
    };
    // The engine is the loaded model; the default streams experts from flash if they do not fit in free memory.
    let engine = Arc::new(Engine::open(Path::new(&model), &EngineOptions::default())?);
    // A session is one text with its KV cache.
    let mut session = Session::new(&engine)?;
    let sampler_options = SamplerOptions { seed: 42, ..SamplerOptions::default() };
    let mut sampler = Sampler::new(sampler_options, engine.hyperparameters().vocabulary)?;
    let tokens = engine.tokenizer().encode_prompt(&prompt)?;
    let options = GenerateOptions { max_tokens: 100, ..GenerateOptions::default() };
    let answer = generate(&mut session, &mut sampler, &tokens, &options, &mut |piece| {
        print!("{}", piece.text);
        // Show each piece as it comes; a closed pipe ends the generation.
        if std::io::stdout().flush().is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    println!();
    eprintln!("{:.1} tokens/s, ended by {}", answer.generation.tokens_per_second(), answer.stop_reason.name());
    Ok(())
}
