//! Traces as files for people and other programs: recorded from a text (`record`), described (`info`), written as tables (`export`,
//! `parquet`), made from what other engines recorded (`import`). The format itself is `moce-routing`'s (docs/formats/trace.md).

mod export;
mod import;
mod info;
#[cfg(feature = "parquet")]
mod parquet;
mod record;

pub use export::{TRACE_COLUMNS, export_csv};
pub use import::import_route_csv;
pub use info::{TraceInfo, trace_info};
#[cfg(feature = "parquet")]
pub use parquet::export_parquet;
pub use record::record_text;
