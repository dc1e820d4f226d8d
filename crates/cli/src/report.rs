//! What moce says beside its results: errors, the line at the start, sizes, peak memory. All on standard error.

use indicatif::{ProgressBar, ProgressStyle};
use std::fmt::Display;
use std::io::{IsTerminal, Write};

/// Writes log events to standard error: warnings, more with `-v` and `-vv`, or what `MOCE_LOG` says.
pub(crate) fn start_log(verbose: u8) {
    let level = ["warn", "info", "debug"][usize::from(verbose.min(2))];
    let filter = match std::env::var("MOCE_LOG") {
        Ok(filter) if !filter.is_empty() => filter,
        _ => level.to_owned(),
    };
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        .with_ansi(colours())
        // What cannot be written is not written about either: that would end the program.
        .log_internal_errors(false)
        .init();
}

/// Writes a line to standard error. That its reader went away (`moce … 2>&1 | head`) ends no work that has a result.
pub(crate) fn say(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// What the command line asks for cannot be meant: the exit status is 2.
#[derive(Debug)]
pub(crate) struct WrongUsage(String);

impl Display for WrongUsage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongUsage {}

/// A [`WrongUsage`] that says this.
pub(crate) fn usage(what: impl Display) -> anyhow::Error {
    WrongUsage(what.to_string()).into()
}

/// One line that says what went wrong, and a second one with the cause where there is one.
pub(crate) fn error(error: &anyhow::Error) {
    say(format_args!("moce: {error}"));
    let said = error.to_string();
    let mut previous = said;
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // Errors that wrap another and repeat its words add nothing.
        if !previous.contains(&cause) {
            say(format_args!("  cause: {cause}"));
        }
        previous = cause;
    }
}

/// Whether colours and progress bars make sense.
pub(crate) fn stderr_is_interactive() -> bool {
    std::io::stderr().is_terminal()
}

/// A progress bar on a terminal, unless it is to be quiet; else nothing. `figures` is what stands behind the bar, in indicatif's notation.
pub(crate) fn progress_bar(quiet: bool, figures: &str) -> ProgressBar {
    if quiet || !stderr_is_interactive() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(&format!("{{wide_bar}} {figures}  {{eta}} left"));
    ProgressBar::no_length().with_style(style.expect("the template is well formed"))
}

/// A progress bar over bytes.
pub(crate) fn bytes_bar(all: u64, quiet: bool) -> ProgressBar {
    let bar = progress_bar(quiet, "{binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}");
    bar.set_length(all);
    bar
}

fn colours() -> bool {
    stderr_is_interactive() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Text in a quiet colour on a terminal; `NO_COLOR` is kept.
pub(crate) fn dim(text: &str) -> String {
    if colours() { format!("\x1b[2m{text}\x1b[0m") } else { text.to_owned() }
}

/// A policy for people, and that of prompt tokens if it is another.
pub(crate) fn routing(policy: &str, prompt_policy: &str) -> String {
    if policy == prompt_policy { policy.to_owned() } else { format!("{policy} (prompt: {prompt_policy})") }
}

/// Experts by layer for people: `30`, or `28 to 31` where layers differ.
pub(crate) fn capacity(by_layer: &[usize]) -> String {
    match (by_layer.iter().min(), by_layer.iter().max()) {
        (Some(least), Some(most)) if least < most => format!("{least} to {most}"),
        (least, _) => least.unwrap_or(&0).to_string(),
    }
}

/// A size for people: `1.5 GiB`, `312 MiB`, `31104 B`.
pub(crate) fn size(bytes: u64) -> String {
    const MIB: f64 = 1024.0 * 1024.0;
    match bytes as f64 {
        bytes if bytes >= 1024.0 * MIB => format!("{:.2} GiB", bytes / (1024.0 * MIB)),
        bytes if bytes >= 10.0 * MIB => format!("{:.0} MiB", bytes / MIB),
        bytes if bytes >= MIB => format!("{:.1} MiB", bytes / MIB),
        bytes if bytes >= 1024.0 => format!("{:.1} KiB", bytes / 1024.0),
        bytes => format!("{bytes} B"),
    }
}

/// Peak resident memory of this process in bytes, where the system tells.
pub(crate) fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// Starts counting the peak anew, where the system lets us.
pub(crate) fn reset_peak_memory() {
    // Linux: 5 resets VmHWM. Elsewhere the peak is that of the whole process.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
