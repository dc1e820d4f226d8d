//! Files of results, whole or not there, with errors that name them.

use crate::Error;
use moce_engine::NewFile;
use serde::Serialize;
use std::path::Path;

pub(crate) fn write(path: &Path, contents: &[u8]) -> Result<(), Error> {
    NewFile::write_whole(path, contents).map_err(|cause| Error::File { path: path.to_owned(), cause })
}

/// With lines for people.
pub(crate) fn write_json_pretty<T: Serialize>(path: &Path, value: &T) -> Result<(), Error> {
    write_json_as(path, serde_json::to_vec_pretty(value))
}

/// Without.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), Error> {
    write_json_as(path, serde_json::to_vec(value))
}

fn write_json_as(path: &Path, json: serde_json::Result<Vec<u8>>) -> Result<(), Error> {
    write(path, &json.map_err(|cause| Error::File { path: path.to_owned(), cause: cause.into() })?)
}
