//! The vector types of SQL and how Arrow holds them. No values here, see `vectors.rs`.

use std::collections::HashMap;
use std::fmt;

use arrow::datatypes::{DataType, Field};
use datafusion::common::{plan_datafusion_err, plan_err};
use datafusion::error::Result;
use datafusion::sql::sqlparser::ast;

/// The most dimensions that a vector may have: 65,536.
pub const DIM_MAX: usize = 65_536;

const TYPE_KEY: &str = "sagitta:type";
const BIT: &str = "bit";

/// What one dimension of a vector is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// 32-bit float.
    Float32,
    /// 16-bit float.
    Float16,
    /// Signed byte.
    Int8,
    /// Unsigned byte.
    UInt8,
    /// One bit; eight dimensions in a byte, the first in the highest bit.
    Bit,
}

/// A vector type: `VECTOR(384)`, `VECTOR(384, INT8)`, `BITVECTOR(1024)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VectorType {
    /// What one dimension is.
    pub element: Element,
    /// Dimensions; bits for a bit vector.
    pub dim: usize,
}

impl VectorType {
    /// The vector type of a field, `None` if it holds no vectors.
    pub fn of_field(field: &Field) -> Option<Self> {
        let DataType::FixedSizeList(item, length) = field.data_type() else { return None };
        let length = usize::try_from(*length).ok()?;
        let is_bit = field.metadata().get(TYPE_KEY).is_some_and(|kind| kind == BIT);
        let (element, dim) = match item.data_type() {
            DataType::Float32 => (Element::Float32, length),
            DataType::Float16 => (Element::Float16, length),
            DataType::Int8 => (Element::Int8, length),
            DataType::UInt8 if is_bit => (Element::Bit, length * 8),
            DataType::UInt8 => (Element::UInt8, length),
            _ => return None,
        };
        Some(Self { element, dim })
    }

    /// The field that holds such vectors, the mark of a bit vector in its metadata.
    pub fn field(self, name: &str, nullable: bool) -> Field {
        let field = Field::new(name, self.data_type(), nullable);
        match self.element {
            Element::Bit => field.with_metadata(HashMap::from([(TYPE_KEY.to_owned(), BIT.to_owned())])),
            _ => field,
        }
    }

    /// The Arrow type: a fixed-size list of the element, of bytes for bits.
    pub fn data_type(self) -> DataType {
        let (item, length) = match self.element {
            Element::Float32 => (DataType::Float32, self.dim),
            Element::Float16 => (DataType::Float16, self.dim),
            Element::Int8 => (DataType::Int8, self.dim),
            Element::UInt8 => (DataType::UInt8, self.dim),
            Element::Bit => (DataType::UInt8, self.dim / 8),
        };
        // DIM_MAX keeps the length far below i32::MAX.
        DataType::new_fixed_size_list(item, i32::try_from(length).unwrap_or(i32::MAX), true)
    }

    /// Reads a vector type of SQL: `VECTOR(d)`, `VECTOR(d, INT8)`, `HALFVEC(d)`, `BITVECTOR(d)`, `FLOAT[d]`.
    /// `None` if it is another type.
    ///
    /// # Errors
    /// A vector type without a dimension, with one out of range, or with an element that does not exist.
    pub fn of_sql(sql: &ast::DataType) -> Result<Option<Self>> {
        match sql {
            ast::DataType::Custom(name, arguments) => Self::of_custom(&name.to_string(), arguments),
            ast::DataType::Array(ast::ArrayElemTypeDef::SquareBracket(item, Some(length))) => {
                let element = match item.as_ref() {
                    ast::DataType::Float(_) | ast::DataType::Real | ast::DataType::Float4 => Element::Float32,
                    _ => return Ok(None),
                };
                let dim = usize::try_from(*length).unwrap_or(usize::MAX);
                Self::checked(element, dim).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn of_custom(name: &str, arguments: &[String]) -> Result<Option<Self>> {
        let name = name.to_lowercase();
        let default = match name.as_str() {
            "vector" => Element::Float32,
            "halfvec" => Element::Float16,
            "bitvector" => Element::Bit,
            _ => return Ok(None),
        };
        let usage = format!("write {}(384)", name.to_uppercase());
        let (dim, element) = match arguments {
            [dim] => (dim, default),
            [dim, element] if name == "vector" => (dim, Element::of_name(element)?),
            [] => return plan_err!("a {} needs its dimension; {usage}", name.to_uppercase()),
            _ => return plan_err!("{} has too many arguments; {usage}", name.to_uppercase()),
        };
        let dim: usize = dim.parse().map_err(|_| {
            plan_datafusion_err!("the dimension of {} is a number, not {dim}; {usage}", name.to_uppercase())
        })?;
        Self::checked(element, dim).map(Some)
    }

    /// # Errors
    /// A dimension of 0 or above [`DIM_MAX`], or bits that do not fill bytes.
    pub fn checked(element: Element, dim: usize) -> Result<Self> {
        if dim == 0 || dim > DIM_MAX {
            return plan_err!("a vector has 1 to {DIM_MAX} dimensions, not {dim}");
        }
        if element == Element::Bit && !dim.is_multiple_of(8) {
            return plan_err!("a BITVECTOR fills whole bytes: its dimension is a multiple of 8, not {dim}");
        }
        Ok(Self { element, dim })
    }
}

impl fmt::Display for VectorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.element {
            Element::Float32 => write!(f, "VECTOR({})", self.dim),
            Element::Bit => write!(f, "BITVECTOR({})", self.dim),
            element => write!(f, "VECTOR({}, {})", self.dim, element.name()),
        }
    }
}

impl Element {
    /// The name in SQL.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "FLOAT32",
            Self::Float16 => "FLOAT16",
            Self::Int8 => "INT8",
            Self::UInt8 => "UINT8",
            Self::Bit => "BIT",
        }
    }

    /// # Errors
    /// A name that is no element; the message lists those that are.
    pub fn of_name(name: &str) -> Result<Self> {
        Ok(match name.to_uppercase().as_str() {
            "FLOAT32" | "FLOAT" | "REAL" => Self::Float32,
            "FLOAT16" | "HALF" => Self::Float16,
            "INT8" => Self::Int8,
            "UINT8" => Self::UInt8,
            "BIT" => Self::Bit,
            _ => {
                return plan_err!(
                    "{name} is no element of a vector; there are FLOAT32, FLOAT16, INT8 and UINT8, and BITVECTOR for bits"
                );
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_remembers_its_vector_type() {
        for element in [Element::Float32, Element::Float16, Element::Int8, Element::UInt8, Element::Bit] {
            let vector = VectorType { element, dim: 16 };
            assert_eq!(VectorType::of_field(&vector.field("v", true)), Some(vector));
        }
    }

    #[test]
    fn dimensions_out_of_range_are_refused() {
        for (element, dim) in [(Element::Float32, 0), (Element::Float32, DIM_MAX + 1), (Element::Bit, 9)] {
            assert!(VectorType::checked(element, dim).is_err(), "{element:?} {dim}");
        }
    }
}
