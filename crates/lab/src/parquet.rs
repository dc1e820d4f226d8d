//! Tables as Parquet files, for pandas, DuckDB and their like: columns of values that may be null, one group of rows after another.

use crate::Error;
use parquet::basic::Compression;
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, DoubleType, FloatType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::parser::parse_message_type;
use std::io::Write;
use std::sync::Arc;

/// A group of rows of one column.
pub(crate) enum Column {
    Integer(Vec<Option<i64>>),
    Single(Vec<Option<f32>>),
    Double(Vec<Option<f64>>),
    Boolean(Vec<Option<bool>>),
    Text(Vec<Option<String>>),
}

impl Column {
    fn schema(&self, name: &str) -> String {
        match self {
            Column::Integer(_) => format!("optional int64 {name};"),
            Column::Single(_) => format!("optional float {name};"),
            Column::Double(_) => format!("optional double {name};"),
            Column::Boolean(_) => format!("optional boolean {name};"),
            Column::Text(_) => format!("optional binary {name} (utf8);"),
        }
    }

    fn write(&self, writer: &mut SerializedColumnWriter<'_>) -> parquet::errors::Result<usize> {
        match self {
            Column::Integer(values) => write_values::<Int64Type>(writer, values),
            Column::Single(values) => write_values::<FloatType>(writer, values),
            Column::Double(values) => write_values::<DoubleType>(writer, values),
            Column::Boolean(values) => write_values::<BoolType>(writer, values),
            Column::Text(values) => {
                let bytes = |text: &Option<String>| text.as_deref().map(ByteArray::from);
                write_values::<ByteArrayType>(writer, &values.iter().map(bytes).collect::<Vec<_>>())
            }
        }
    }
}

fn write_values<T: DataType>(
    writer: &mut SerializedColumnWriter<'_>,
    values: &[Option<T::T>],
) -> parquet::errors::Result<usize> {
    // The definition level says whether there is a value.
    let levels: Vec<i16> = values.iter().map(|value| i16::from(value.is_some())).collect();
    let present: Vec<T::T> = values.iter().flatten().cloned().collect();
    writer.typed::<T>().write_batch(&present, Some(&levels), None)
}

/// A file that is being written.
pub(crate) struct Table<W: Write + Send> {
    writer: SerializedFileWriter<W>,
}

impl<W: Write + Send> Table<W> {
    /// Begins a file with columns of these names, of the kinds of `like`.
    pub(crate) fn create(output: W, names: &[&str], like: &[Column]) -> Result<Table<W>, Error> {
        let fields: String = names.iter().zip(like).map(|(name, column)| column.schema(name)).collect();
        let schema = parse_message_type(&format!("message table {{ {fields} }}")).map_err(failed)?;
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let writer = SerializedFileWriter::new(output, Arc::new(schema), Arc::new(properties)).map_err(failed)?;
        Ok(Table { writer })
    }

    /// Writes a group of rows; all columns have the same number.
    pub(crate) fn write(&mut self, columns: &[Column]) -> Result<(), Error> {
        let mut write = || {
            let mut group = self.writer.next_row_group()?;
            for column in columns {
                let mut writer = group.next_column()?.expect("as many columns as the table has");
                column.write(&mut writer)?;
                writer.close()?;
            }
            group.close()
        };
        write().map(drop).map_err(failed)
    }

    pub(crate) fn finish(self) -> Result<(), Error> {
        self.writer.close().map(drop).map_err(failed)
    }
}

fn failed(error: parquet::errors::ParquetError) -> Error {
    Error::Io(std::io::Error::other(error))
}
