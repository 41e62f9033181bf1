//! What an index on a column that holds no vectors is to be: the method and the options of `CREATE INDEX`, in the names of
//! PostgreSQL and of Lance, whose indexes these are.

use arrow::datatypes::{DataType, Field};
use datafusion::common::plan_err;
use datafusion::error::Result;
use serde_json::{Map, Value, json};

use crate::vector_type::VectorType;

/// Rows of a zone, items of a bloom filter at most.
const ZONE_ROWS_MAX: u64 = 1 << 20;

/// Signs of a word at most.
const WORD_SIGNS_MAX: u64 = 1_000;

/// Languages whose words can be brought to their stems.
const LANGUAGES: [&str; 18] = [
    "Arabic",
    "Danish",
    "Dutch",
    "English",
    "Finnish",
    "French",
    "German",
    "Greek",
    "Hungarian",
    "Italian",
    "Norwegian",
    "Portuguese",
    "Romanian",
    "Russian",
    "Spanish",
    "Swedish",
    "Tamil",
    "Turkish",
];

/// Ways to cut a text into words.
const TOKENIZERS: [&str; 4] = ["simple", "whitespace", "raw", "ngram"];

/// An index for predicates or text searches, as it was asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct ScalarSpec {
    /// The one name of its method: `btree`, `bitmap`, `label_list`, `ngram`, `zonemap`, `bloom_filter` or `inverted`.
    pub method: &'static str,
    /// Parameters in Lance's words, as JSON; `None` for the defaults.
    pub parameters: Option<String>,
}

impl ScalarSpec {
    /// Reads what `CREATE INDEX … USING method (column operator_class) WITH (options)` says of a column; `None` if it asks
    /// for an index of vectors. Without a method a column of vectors has one of these, a list `label_list`, and every
    /// other column `btree`.
    ///
    /// # Errors
    /// A method that does not go with the column, an operator class or an option that the method does not have.
    pub fn parse(
        method: Option<&str>,
        operator_class: Option<&str>,
        options: &[(String, String)],
        column: &Field,
    ) -> Result<Option<Self>> {
        let asked = method.unwrap_or("auto").to_lowercase();
        let class = operator_class.map(str::to_lowercase);
        let holds_vectors = holds_vectors(column);
        let Some((method, is_class_known)) = method_of(&asked, class.as_deref(), column, holds_vectors) else {
            return Ok(None);
        };
        if holds_vectors {
            return plan_err!(
                "{} holds vectors, of which an index of the method {asked} is of no use; write USING graph or USING ivf",
                column.name()
            );
        }
        if let Some(class) = class.filter(|_| !is_class_known) {
            return match class.as_str() {
                "asc" | "desc" => plan_err!("an index serves both directions; leave {class} out"),
                _ => plan_err!("an index of the method {asked} has no operator class {class}; leave it out"),
            };
        }
        let parameters = parameters(method, options)?;
        Ok(Some(Self { method, parameters }))
    }
}

/// Vectors, or lists of them.
fn holds_vectors(column: &Field) -> bool {
    match column.data_type() {
        DataType::List(item) | DataType::LargeList(item) => VectorType::of_field(item).is_some(),
        _ => VectorType::of_field(column).is_some(),
    }
}

/// The method, and whether the operator class belongs to it; `None` for one that is not of this file.
fn method_of(asked: &str, class: Option<&str>, column: &Field, holds_vectors: bool) -> Option<(&'static str, bool)> {
    let is_list = matches!(column.data_type(), DataType::List(_) | DataType::LargeList(_));
    // Texts are compared byte by byte, as these classes want it.
    let by_bytes = matches!(class, Some("text_pattern_ops" | "varchar_pattern_ops"));
    Some(match asked {
        "auto" if holds_vectors => return None,
        "auto" | "gin" if is_list => ("label_list", class == Some("array_ops")),
        "auto" | "btree" => ("btree", by_bytes),
        // Equality is what a hash index answers, and a btree does too.
        "hash" => ("btree", false),
        "bitmap" => ("bitmap", false),
        "label_list" | "labellist" => ("label_list", class == Some("array_ops")),
        "gin" if class == Some("gin_trgm_ops") => ("ngram", true),
        "ngram" => ("ngram", class == Some("gin_trgm_ops")),
        "brin" | "zonemap" | "zone_map" => ("zonemap", false),
        "bloom" | "bloom_filter" | "bloomfilter" => ("bloom_filter", false),
        "gin" | "inverted" | "fts" => ("inverted", false),
        _ => return None,
    })
}

fn parameters(method: &str, options: &[(String, String)]) -> Result<Option<String>> {
    let mut all = Map::new();
    for (name, value) in options {
        let value = match (method, name.as_str()) {
            ("zonemap", "rows_per_zone") | ("bloom_filter", "number_of_items") => whole(name, value, ZONE_ROWS_MAX)?,
            ("bloom_filter", "probability") => share(name, value)?,
            ("inverted", "tokenizer") => {
                all.insert("base_tokenizer".to_owned(), one_of(name, value, &TOKENIZERS)?);
                continue;
            }
            ("inverted", "language") => one_of(name, value, &LANGUAGES)?,
            ("inverted", "stem" | "remove_stop_words" | "lower_case" | "ascii_folding") => on_or_off(name, value)?,
            ("inverted", "max_token_length" | "min_ngram_length" | "max_ngram_length") => {
                whole(name, value, WORD_SIGNS_MAX)?
            }
            _ => {
                return plan_err!(
                    "an index of the method {method} has no option {name}; it has {}",
                    match method {
                        "zonemap" => "rows_per_zone",
                        "bloom_filter" => "number_of_items and probability",
                        "inverted" =>
                            "tokenizer, language, stem, remove_stop_words, lower_case, ascii_folding, max_token_length, \
                             min_ngram_length and max_ngram_length",
                        _ => "none",
                    }
                );
            }
        };
        all.insert(name.clone(), value);
    }
    if let Some(name) = ["min_ngram_length", "max_ngram_length"].into_iter().find(|name| all.contains_key(*name))
        && all.get("tokenizer") != Some(&json!("ngram"))
    {
        return plan_err!("{name} is of words that are parts of words; write tokenizer = 'ngram' beside it");
    }
    if method == "zonemap" {
        // Lance would have every data file carry a part of the index from now on.
        all.insert("use_seeds".to_owned(), json!(false));
    }
    Ok((!all.is_empty()).then(|| Value::Object(all).to_string()))
}

fn whole(name: &str, value: &str, most: u64) -> Result<Value> {
    match value.parse::<u64>() {
        Ok(number) if (1..=most).contains(&number) => Ok(json!(number)),
        _ => plan_err!("{name} is a whole number from 1 to {most}, not {value}"),
    }
}

fn one_of(name: &str, value: &str, known: &[&str]) -> Result<Value> {
    match known.iter().find(|known| known.eq_ignore_ascii_case(value)) {
        Some(known) => Ok(json!(known)),
        None => plan_err!("there is no {name} {value}; there are {}", known.join(", ")),
    }
}

fn on_or_off(name: &str, value: &str) -> Result<Value> {
    match value.to_lowercase().as_str() {
        "true" | "on" => Ok(json!(true)),
        "false" | "off" => Ok(json!(false)),
        _ => plan_err!("{name} is true or false, not {value}"),
    }
}

fn share(name: &str, value: &str) -> Result<Value> {
    match value.parse::<f64>() {
        Ok(number) if number > 0.0 && number < 1.0 => Ok(json!(number)),
        _ => plan_err!("{name} is a number between 0 and 1, not {value}"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::vector_type::Element;

    fn column(data_type: DataType) -> Field {
        Field::new("c", data_type, true)
    }

    fn parsed(
        method: Option<&str>,
        class: Option<&str>,
        options: &[(&str, &str)],
        column: &Field,
    ) -> Result<Option<ScalarSpec>> {
        let options: Vec<_> = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        ScalarSpec::parse(method, class, &options, column)
    }

    #[test]
    fn names_of_other_systems_are_the_same_kind_of_index() {
        let list = DataType::List(Arc::new(Field::new("item", DataType::Utf8, true)));
        for (method, class, data_type, expected) in [
            (None, None, DataType::Int32, "btree"),
            (Some("auto"), None, DataType::Utf8, "btree"),
            (None, None, list.clone(), "label_list"),
            (Some("HASH"), None, DataType::Int64, "btree"),
            (Some("btree"), Some("text_pattern_ops"), DataType::Utf8, "btree"),
            (Some("brin"), None, DataType::Int64, "zonemap"),
            (Some("bloom"), None, DataType::Int64, "bloom_filter"),
            (Some("gin"), None, list, "label_list"),
            (Some("gin"), Some("gin_trgm_ops"), DataType::Utf8, "ngram"),
            (Some("gin"), None, DataType::Utf8, "inverted"),
        ] {
            let spec = parsed(method, class, &[], &column(data_type)).unwrap().unwrap();
            assert_eq!(spec.method, expected, "{method:?} {class:?}");
        }
        let vectors = VectorType { dim: 8, element: Element::Float32 }.field("emb", true);
        assert_eq!(parsed(None, None, &[], &vectors).unwrap(), None);
        assert_eq!(parsed(Some("ivf"), None, &[], &column(DataType::Int32)).unwrap(), None);
    }

    #[test]
    fn options_are_in_the_words_of_lance() {
        let number = column(DataType::Int32);
        let spec = parsed(Some("bloom"), None, &[("number_of_items", "100"), ("probability", "0.01")], &number);
        assert_eq!(spec.unwrap().unwrap().parameters.unwrap(), r#"{"number_of_items":100,"probability":0.01}"#);
        let spec = parsed(Some("brin"), None, &[("rows_per_zone", "1024")], &number).unwrap().unwrap();
        assert_eq!(spec.parameters.unwrap(), r#"{"rows_per_zone":1024,"use_seeds":false}"#);
        assert_eq!(parsed(None, None, &[], &number).unwrap().unwrap().parameters, None);
        let options = [("tokenizer", "whitespace"), ("language", "german"), ("stem", "off")];
        let spec = parsed(Some("inverted"), None, &options, &column(DataType::Utf8)).unwrap().unwrap();
        let expected = r#"{"base_tokenizer":"whitespace","language":"German","stem":false}"#;
        assert_eq!(spec.parameters.unwrap(), expected);
    }

    #[test]
    fn what_does_not_exist_is_an_error_that_says_what_does() {
        let vectors = VectorType { dim: 8, element: Element::Float32 }.field("emb", true);
        for (method, class, options, column, says) in [
            ("btree", None, &[][..], &vectors, "USING graph"),
            ("btree", Some("DESC"), &[], &column(DataType::Int32), "both directions"),
            ("btree", Some("vector_l2_ops"), &[], &column(DataType::Int32), "no operator class vector_l2_ops"),
            ("btree", None, &[("fillfactor", "70")], &column(DataType::Int32), "no option fillfactor; it has none"),
            ("brin", None, &[("rows_per_zone", "0")], &column(DataType::Int32), "from 1 to"),
            ("bloom", None, &[("probability", "2")], &column(DataType::Int32), "between 0 and 1"),
            ("inverted", None, &[("stem", "perhaps")], &column(DataType::Utf8), "true or false"),
            ("inverted", None, &[("language", "Klingon")], &column(DataType::Utf8), "English"),
        ] {
            let error = parsed(Some(method), class, options, column).unwrap_err().to_string();
            assert!(error.contains(says), "{method} {options:?}: {error}");
        }
    }
}
