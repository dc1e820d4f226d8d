//! `moce tokenize`: text to token ids and back, from the vocabulary in a model file.

use super::{say_what_is_lost, write_json};
use crate::arguments::Global;
use crate::model_path;
use crate::report::usage;
use anyhow::{Context, bail};
use clap::{Args, ValueHint};
use moce_engine::Tokenizer;
use moce_engine::tokenizer::{ControlTokens, SpecialTokens};
use moce_gguf::Gguf;
use serde::Serialize;
use std::io::Write;
use std::path::Path;

#[derive(Debug, Args)]
pub(crate) struct Tokenize {
    /// `[MODEL] [TEXT]`: a first argument that ends in .gguf is the model; without TEXT standard input is read
    #[arg(value_name = "MODEL] [TEXT", num_args = 0..=2, value_hint = ValueHint::FilePath)]
    pub(crate) arguments: Vec<String>,
    /// Print the ids alone, on one line
    #[arg(long)]
    pub(crate) ids: bool,
    /// The other way: TEXT is a list of ids, with spaces or commas between them
    #[arg(long, conflicts_with = "ids")]
    pub(crate) decode: bool,
}

#[derive(Serialize)]
struct Token {
    id: u32,
    piece: String,
}

pub(crate) fn run(arguments: &Tokenize, global: &Global) -> anyhow::Result<()> {
    let (model, text) = match arguments.arguments.as_slice() {
        [first, rest @ ..] if first.ends_with(".gguf") => (Some(first), rest.first()),
        [text] => (None, Some(text)),
        [] => (None, None),
        [first, ..] => {
            return Err(usage(format_args!(
                "'{first}' is no .gguf file; a model comes first, then the text (quote it if it has spaces)"
            )));
        }
    };
    let path = model_path::resolve(model.map(Path::new))?;
    let tokenizer = Tokenizer::from_gguf(Gguf::open(&path)?.metadata())?;
    let text = match text {
        Some(text) => text.clone(),
        None => model_path::read_text("-".as_ref())?,
    };
    let mut output = std::io::stdout().lock();
    if arguments.decode {
        let ids = read_ids(&text, tokenizer.vocabulary_size())?;
        let text = String::from_utf8_lossy(&tokenizer.decode(&ids, ControlTokens::Show)?).into_owned();
        if global.json {
            write_json(&mut output, &text)?;
        } else {
            output.write_all(text.as_bytes())?;
            if !text.ends_with('\n') {
                writeln!(output)?;
            }
        }
        return Ok(());
    }
    let ids = tokenizer.encode(&text, SpecialTokens::Parse)?;
    say_what_is_lost(&tokenizer, &text);
    if global.json {
        let tokens: Vec<Token> = ids.iter().map(|&id| Token { id, piece: piece(&tokenizer, id) }).collect();
        write_json(&mut output, &tokens)?;
    } else if arguments.ids {
        let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
        writeln!(output, "{}", ids.join(" "))?;
    } else {
        for id in ids {
            writeln!(output, "{id:>8}  {:?}", piece(&tokenizer, id))?;
        }
    }
    Ok(())
}

/// Ids as `--ids` prints them, or as a list of another program: with spaces, commas and brackets.
fn read_ids(text: &str, vocabulary: usize) -> anyhow::Result<Vec<u32>> {
    let between = |c: char| c.is_whitespace() || matches!(c, ',' | '[' | ']');
    let numbers = text.split(between).filter(|number| !number.is_empty());
    numbers
        .map(|number| {
            let id: u32 =
                number.parse().with_context(|| format!("{number:?} is no token id (`--ids` prints them alone)"))?;
            if id as usize >= vocabulary {
                bail!("token id {id} is outside the vocabulary of {vocabulary}");
            }
            Ok(id)
        })
        .collect()
}

/// A token's text; bytes that are no UTF-8 by themselves are replaced.
fn piece(tokenizer: &Tokenizer, id: u32) -> String {
    String::from_utf8_lossy(tokenizer.piece(id).unwrap_or_default()).into_owned()
}
