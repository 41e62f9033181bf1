//! Arrays in files of NumPy's, read row by row.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use benches::Failure;

/// The type of elements that are float32.
pub const FLOATS: &str = "<f4";
/// The type of elements that are int32.
pub const INTEGERS: &str = "<i4";

/// An array of one or two dimensions, its elements 4 bytes each, in C order.
pub struct Npy {
    file: BufReader<File>,
    /// Rows that it has.
    pub rows: usize,
    /// Elements of a row; 1 in an array of one dimension.
    pub width: usize,
}

impl Npy {
    /// Reads the head of a file.
    ///
    /// # Errors
    /// No such file, one of another kind, elements of another type.
    pub fn open(path: &Path, element: &str) -> Result<Self, Failure> {
        const BUFFER_BYTES: usize = 1 << 20;
        let place = path.display();
        let file = File::open(path)
            .map_err(|error| format!("{place}: {error}; benches/README.md says what is in the folder"))?;
        let mut file = BufReader::with_capacity(BUFFER_BYTES, file);
        let mut start = [0_u8; 8];
        file.read_exact(&mut start)?;
        if !start.starts_with(b"\x93NUMPY") {
            return Err(format!("{place} is no npy file").into());
        }
        // The length of the head has two bytes in version 1 and four in later ones.
        let mut length = [0_u8; 4];
        file.read_exact(&mut length[..if start[6] == 1 { 2 } else { 4 }])?;
        let mut head = vec![0_u8; u32::from_le_bytes(length) as usize];
        file.read_exact(&mut head)?;
        let head = String::from_utf8(head)?;
        let shape = head.split("'shape': (").nth(1).and_then(|rest| rest.split(')').next()).unwrap_or_default();
        let lengths = shape.split(',').map(str::trim).filter(|length| !length.is_empty()).map(str::parse::<usize>);
        let is_plain = head.contains(element) && head.contains("'fortran_order': False");
        match lengths.collect::<Result<Vec<_>, _>>()?.as_slice() {
            [rows] if is_plain => Ok(Self { file, rows: *rows, width: 1 }),
            [rows, width] if is_plain => Ok(Self { file, rows: *rows, width: *width }),
            _ => Err(format!("{place} holds {head}, not {element} in C order").into()),
        }
    }

    /// Appends the elements of the next row; `of` makes one of its bytes.
    ///
    /// # Errors
    /// A file that is cut short.
    pub fn next_row<T>(&mut self, values: &mut Vec<T>, of: impl Fn([u8; 4]) -> T) -> Result<(), Failure> {
        let mut row = vec![0_u8; self.width * 4];
        self.file.read_exact(&mut row)?;
        values.extend(row.as_chunks::<4>().0.iter().map(|bytes| of(*bytes)));
        Ok(())
    }

    /// All elements; `of` makes one of its bytes.
    ///
    /// # Errors
    /// A file that is cut short.
    pub fn values<T>(mut self, of: impl Fn([u8; 4]) -> T) -> Result<Vec<T>, Failure> {
        let mut values = Vec::with_capacity(self.rows * self.width);
        for _ in 0..self.rows {
            self.next_row(&mut values, &of)?;
        }
        Ok(values)
    }
}
