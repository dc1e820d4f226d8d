//! Traces as files for people and other programs: recorded from a text (`record`), described (`info`), written as CSV (`export`), made from
//! what other engines recorded (`import`). The format itself is `moce-routing`'s (docs/formats/trace.md).

mod export;
mod import;
mod info;
mod record;

pub use export::{CSV_COLUMNS, export_csv};
pub use import::import_route_csv;
pub use info::{TraceInfo, trace_info};
pub use record::record_text;
