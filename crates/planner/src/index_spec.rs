//! What an index is to be: the method, the metric and the parameters of `CREATE INDEX`, in the names of this and of other systems.

use arrow::datatypes::Field;
use datafusion::common::{not_impl_err, plan_err};
use datafusion::error::Result;
use kernels::Metric;
use serde_json::{Value, json};

use crate::functions::distance::check_metric;
use crate::vector_type::{Element, VectorType};

/// Neighbors of a vertex at most.
const DEGREE_MAX: u64 = 256;
/// Vertices that a walk keeps, at the build and in a search.
const BEAM_MAX: u64 = 65_536;
/// Lists of an index at most.
const LISTS_MAX: u64 = 1 << 20;

/// An index as it was asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct IndexSpec {
    /// The method, as the user called it.
    pub method: String,
    /// How it is built.
    pub family: Family,
    /// What it orders by.
    pub metric: Metric,
    /// Vertices kept in a search (`ef_search`), lists read (`nprobe`); by the recall that is wanted if absent.
    pub effort: Option<usize>,
}

/// A family of indexes and its parameters; what is absent is chosen by the data.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Family {
    /// By size and type: a graph, or lists where a graph would be too large.
    Auto,
    /// A Vamana graph over codes.
    Graph {
        /// Neighbors of a vertex.
        degree: Option<usize>,
        /// Vertices kept by the walks of the build.
        ef_construction: Option<usize>,
        /// Bits of an element of a code.
        bits: Option<u8>,
    },
    /// The codes of all rows, each compared with every query.
    Flat {
        /// What is kept of a vector.
        code: ListCode,
    },
    /// Lists around centroids.
    Ivf {
        /// How many.
        lists: Option<usize>,
        /// What is in them.
        code: ListCode,
        /// Whether a row stands in two of them.
        spill: bool,
        /// Of product codes: the cosine from which on errors count; 0: all count alike.
        score_threshold: f32,
    },
}

/// How the vectors of lists are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListCode {
    /// As they are.
    Raw,
    /// 8 bits an element.
    Scalar8,
    /// 4 bits an element.
    Scalar4,
    /// RaBitQ of 1 to 9 bits.
    Rabitq(u8),
    /// Product quantization: codes of 4 or 8 bits, each for so many elements.
    Product {
        /// Bits of a code.
        bits: u8,
        /// Elements of a code.
        dims: u8,
    },
}

impl ListCode {
    /// Its name, its bits, and how many elements a code stands for.
    fn to_words(self) -> (&'static str, Option<u8>, Option<u8>) {
        match self {
            ListCode::Raw => ("raw", None, None),
            ListCode::Scalar8 => ("scalar", Some(8), None),
            ListCode::Scalar4 => ("scalar", Some(4), None),
            ListCode::Rabitq(bits) => ("rabitq", Some(bits), None),
            ListCode::Product { bits, dims } => ("product", Some(bits), Some(dims)),
        }
    }

    fn of_words(code: &str, bits: Option<u8>, dims: Option<u8>) -> Option<Self> {
        Some(match (code, bits, dims) {
            ("raw", _, _) => ListCode::Raw,
            ("scalar", Some(8), _) => ListCode::Scalar8,
            ("scalar", Some(4), _) => ListCode::Scalar4,
            ("rabitq", Some(bits), _) => ListCode::Rabitq(bits),
            ("product", Some(bits), Some(dims)) => ListCode::Product { bits, dims },
            _ => return None,
        })
    }
}

/// The bits of RaBitQ codes if nothing is said.
const RABITQ_BITS: u8 = 5;

impl IndexSpec {
    /// Reads what `CREATE INDEX … USING method (column operator_class) WITH (options)` says of a column.
    ///
    /// # Errors
    /// A method, an operator class, an option or a value that does not exist or does not go with the column; what exists instead.
    pub fn parse(
        method: Option<&str>,
        operator_class: Option<&str>,
        options: &[(String, String)],
        column: &Field,
    ) -> Result<Self> {
        let method = method.unwrap_or("auto").to_lowercase();
        let mut family = family(&method)?;
        let Some(vectors) = VectorType::of_field(column) else {
            return plan_err!(
                "{} holds no vectors, which the method {method} is for; write USING btree or USING bitmap for predicates on it",
                column.name()
            );
        };
        let mut metric = operator_class.map(|class| metric_of_class(class)).transpose()?;
        let (mut effort, mut subvectors) = (None, None);
        let mut seen: Vec<&str> = vec![];
        for (name, value) in options {
            let option = canonical(name);
            if seen.contains(&option) {
                return plan_err!("the option {option} is given twice, once as {name}; give it once");
            }
            seen.push(option);
            if name == "metric" || name == "distance" {
                let named = metric_named(value)?;
                if metric.is_some_and(|metric| metric != named) {
                    return plan_err!("the operator class and the option {name} name two metrics; name one");
                }
                metric = Some(named);
            } else if let (Family::Ivf { code: ListCode::Product { .. }, .. }, "m") = (&family, name.as_str()) {
                subvectors = Some(value);
            } else {
                set_option(&mut family, &mut effort, &method, name, value)?;
            }
        }
        if let (Family::Ivf { code: ListCode::Product { bits, dims }, .. }, Some(m)) = (&mut family, subvectors) {
            *dims = dims_of_code(m, vectors.dim, *bits)?;
        }
        let default = if vectors.element == Element::Bit { Metric::Hamming } else { Metric::L2 };
        let metric = metric.unwrap_or(default);
        check_metric(metric.name(), metric, Some(vectors), None)?;
        if metric == Metric::L1 {
            return not_impl_err!("an index for l1 distances is not built yet; searches by l1 compare all candidates");
        }
        if vectors.element == Element::Bit && seen.contains(&"bits") {
            return plan_err!("bit vectors are their own codes; leave bits out");
        }
        if vectors.element == Element::Bit
            && matches!(
                family,
                Family::Flat { .. }
                    | Family::Ivf {
                        code: ListCode::Scalar8 | ListCode::Scalar4 | ListCode::Rabitq(_) | ListCode::Product { .. },
                        ..
                    }
            )
        {
            family = match (family, method.as_str()) {
                (Family::Ivf { lists, spill: false, .. }, "ivf") => {
                    Family::Ivf { lists, code: ListCode::Raw, spill: false, score_threshold: 0.0 }
                }
                _ => {
                    return plan_err!(
                        "bit vectors are their own codes; use ivf, ivf_flat or graph for {}",
                        column.name()
                    );
                }
            };
        }
        if vectors.element == Element::Bit && matches!(family, Family::Ivf { spill: true, .. }) {
            return plan_err!("bit vectors stand in one list each; leave spill out");
        }
        Ok(Self { method, family, metric, effort })
    }

    /// As text, for the list of indexes.
    pub fn to_text(&self) -> String {
        let family = match self.family {
            Family::Auto => json!({ "family": "auto" }),
            Family::Graph { degree, ef_construction, bits } => {
                json!({ "family": "graph", "degree": degree, "ef_construction": ef_construction, "bits": bits })
            }
            Family::Flat { code } => {
                let (code, bits, dims) = code.to_words();
                json!({ "family": "flat", "code": code, "bits": bits, "dims": dims })
            }
            Family::Ivf { lists, code, spill, score_threshold } => {
                let (code, bits, dims) = code.to_words();
                json!({
                    "family": "ivf",
                    "lists": lists,
                    "code": code,
                    "bits": bits,
                    "dims": dims,
                    "spill": spill,
                    "score_threshold": score_threshold,
                })
            }
        };
        json!({ "method": self.method, "metric": self.metric.name(), "effort": self.effort, "build": family })
            .to_string()
    }

    /// Reads what [`to_text`](Self::to_text) wrote; `None` for what another program wrote.
    pub fn of_text(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let build = &value["build"];
        let number = |value: &Value| value.as_u64().and_then(|number| usize::try_from(number).ok());
        let small = |name: &str| build[name].as_u64().and_then(|number| u8::try_from(number).ok());
        let (bits, dims) = (small("bits"), small("dims"));
        let family = match build["family"].as_str()? {
            "auto" => Family::Auto,
            "graph" => {
                let (degree, ef_construction) = (number(&build["degree"]), number(&build["ef_construction"]));
                Family::Graph { degree, ef_construction, bits }
            }
            "flat" => Family::Flat { code: ListCode::of_words(build["code"].as_str()?, bits, dims)? },
            "ivf" => {
                let code = ListCode::of_words(build["code"].as_str()?, bits, dims)?;
                // Lists of before could not say it.
                let spill = build["spill"].as_bool().unwrap_or(false);
                let score_threshold = build["score_threshold"].as_f64().unwrap_or(0.0) as f32;
                Family::Ivf { lists: number(&build["lists"]), code, spill, score_threshold }
            }
            _ => return None,
        };
        let metric = Metric::parse(value["metric"].as_str()?)?;
        Some(Self { method: value["method"].as_str()?.to_owned(), family, metric, effort: number(&value["effort"]) })
    }
}

fn family(method: &str) -> Result<Family> {
    let ivf = |code| Family::Ivf { lists: None, code, spill: false, score_threshold: 0.0 };
    Ok(match method {
        "auto" => Family::Auto,
        "graph" | "hnsw" | "diskann" | "vamana" => Family::Graph { degree: None, ef_construction: None, bits: None },
        "ivf" | "ivf_rabitq" => ivf(ListCode::Rabitq(RABITQ_BITS)),
        "ivfflat" | "ivf_flat" => ivf(ListCode::Raw),
        "ivf_sq8" => ivf(ListCode::Scalar8),
        "ivf_sq4" => ivf(ListCode::Scalar4),
        "ivf_pq" => ivf(ListCode::Product { bits: 8, dims: 4 }),
        "scann" => {
            Family::Ivf { lists: None, code: ListCode::Product { bits: 4, dims: 2 }, spill: true, score_threshold: 0.0 }
        }
        "flat" => Family::Flat { code: ListCode::Rabitq(RABITQ_BITS) },
        _ => return plan_err!("there is no index method {method}; there are {METHODS}"),
    })
}

const METHODS: &str = "auto, graph (also hnsw, diskann, vamana), ivf (also ivf_rabitq), ivf_flat (also ivfflat), ivf_sq8, ivf_sq4, ivf_pq, scann and flat for \
     vectors, btree (also hash), bitmap, zonemap (also brin), bloom_filter, label_list, ngram and inverted for all else";

/// The metric of an operator class of pgvector, or of its plain name.
fn metric_of_class(class: &str) -> Result<Metric> {
    let class = class.to_lowercase();
    let stem = class.strip_suffix("_ops").unwrap_or(&class);
    let metric = match stem.split_once('_') {
        Some(("vector" | "halfvec" | "bit" | "sparsevec", name)) => name,
        _ => stem,
    };
    metric_named(metric)
}

fn metric_named(name: &str) -> Result<Metric> {
    match Metric::parse(name) {
        Some(metric) => Ok(metric),
        None => plan_err!(
            "there is no metric {name}; operator classes are vector_l2_ops, vector_cosine_ops, vector_ip_ops, bit_hamming_ops and bit_jaccard_ops"
        ),
    }
}

/// The one name of an option that has several.
fn canonical(name: &str) -> &str {
    match name {
        "num_neighbors" | "max_degree" => "m",
        "search_list_size" => "ef_construction",
        "nlist" => "lists",
        "probes" => "nprobe",
        "nbits" => "bits",
        "distance" => "metric",
        name => name,
    }
}

fn set_option(family: &mut Family, effort: &mut Option<usize>, method: &str, name: &str, value: &str) -> Result<()> {
    let number = |least: u64, most: u64| -> Result<usize> {
        match value.parse::<u64>() {
            Ok(number) if (least..=most).contains(&number) => Ok(usize::try_from(number).unwrap_or(usize::MAX)),
            _ => plan_err!("{name} is a whole number from {least} to {most}, not {value}"),
        }
    };
    match (family, name) {
        (Family::Graph { degree, .. }, "m" | "num_neighbors" | "max_degree") => {
            // HNSW's m bounds the upper layers; the bottom one, which is the graph here, has twice as many.
            let times = if method == "hnsw" && name == "m" { 2 } else { 1 };
            *degree = Some(number(2, DEGREE_MAX / times)? * usize::try_from(times).unwrap_or(1));
        }
        (Family::Graph { ef_construction, .. }, "ef_construction" | "search_list_size") => {
            *ef_construction = Some(number(4, 4096)?);
        }
        (Family::Graph { bits, .. }, "bits") => {
            *bits = match number(2, 8)? {
                bits @ (2 | 4 | 8) => u8::try_from(bits).ok(),
                _ => return plan_err!("bits of a graph's codes are 2, 4 or 8, not {value}"),
            };
        }
        (Family::Graph { .. }, "ef_search") => *effort = Some(number(1, BEAM_MAX)?),
        (Family::Ivf { lists, .. }, "lists" | "nlist") => *lists = Some(number(1, LISTS_MAX)?),
        (Family::Ivf { spill, .. }, "spill") => *spill = switch(name, value)?,
        (Family::Ivf { code: ListCode::Product { .. }, score_threshold, .. }, "score_threshold") => {
            match value.parse::<f32>() {
                Ok(threshold) if (0.0..1.0).contains(&threshold) => *score_threshold = threshold,
                _ => return plan_err!("score_threshold is a cosine from 0 to below 1, not {value}"),
            }
        }
        (Family::Ivf { code: ListCode::Product { bits, dims }, .. }, "bits" | "nbits") => match number(4, 8)? {
            4 => (*bits, *dims) = (4, 2),
            8 => (*bits, *dims) = (8, 4),
            _ => return plan_err!("bits of product codes are 4 or 8, not {value}"),
        },
        (Family::Ivf { .. }, "nprobe" | "probes") => *effort = Some(number(1, LISTS_MAX)?),
        (Family::Ivf { code: ListCode::Rabitq(bits), .. } | Family::Flat { code: ListCode::Rabitq(bits) }, "bits") => {
            *bits = u8::try_from(number(1, 9)?).unwrap_or(RABITQ_BITS);
        }
        (family, _) => {
            let known = match family {
                Family::Auto => "metric",
                Family::Flat { .. } => "metric, bits",
                Family::Graph { .. } => "metric, m, ef_construction, ef_search, bits",
                Family::Ivf { code: ListCode::Rabitq(_), .. } => "metric, lists, nprobe, spill, bits",
                Family::Ivf { code: ListCode::Product { .. }, .. } => {
                    "metric, lists, nprobe, spill, bits, m, score_threshold"
                }
                Family::Ivf { .. } => "metric, lists, nprobe, spill",
            };
            return plan_err!("an index of the method {method} has no option {name}; it has {known}");
        }
    }
    Ok(())
}

fn switch(name: &str, value: &str) -> Result<bool> {
    match value.to_lowercase().as_str() {
        "on" | "true" | "1" | "yes" => Ok(true),
        "off" | "false" | "0" | "no" => Ok(false),
        _ => plan_err!("{name} is on or off, not {value}"),
    }
}

/// Elements of a code if a vector has `m` codes, as FAISS and Milvus count them.
fn dims_of_code(m: &str, dim: usize, bits: u8) -> Result<u8> {
    let possible: [u8; 3] = if bits == 4 { [1, 2, 4] } else { [2, 4, 8] };
    let fits = |dims: &u8| m.parse::<usize>().is_ok_and(|m| dim.div_ceil(usize::from(*dims)) == m);
    match possible.into_iter().find(fits) {
        Some(dims) => Ok(dims),
        None => {
            let numbers = possible.map(|dims| dim.div_ceil(usize::from(dims)).to_string());
            plan_err!(
                "m is the number of codes of a vector: of {dim} dimensions by codes of {bits} bits {}, not {m}",
                numbers.join(", ")
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(method: &str, class: Option<&str>, options: &[(&str, &str)]) -> Result<IndexSpec> {
        let column = VectorType { dim: 8, element: Element::Float32 }.field("emb", true);
        let options: Vec<_> = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        IndexSpec::parse(Some(method), class, &options, &column)
    }

    #[test]
    fn names_of_other_systems_are_the_same_kind_of_index() {
        let graph = |degree| Family::Graph { degree, ef_construction: None, bits: None };
        for (method, class, options, family, metric) in [
            ("hnsw", Some("vector_cosine_ops"), &[("m", "24")][..], graph(Some(48)), Metric::Cosine),
            ("graph", Some("vector_ip_ops"), &[("m", "48")], graph(Some(48)), Metric::InnerProduct),
            ("diskann", None, &[("metric", "cosine")], graph(None), Metric::Cosine),
            (
                "ivfflat",
                None,
                &[("lists", "9")],
                Family::Ivf { lists: Some(9), code: ListCode::Raw, spill: false, score_threshold: 0.0 },
                Metric::L2,
            ),
            (
                "IVF",
                Some("halfvec_l2_ops"),
                &[("bits", "4")],
                Family::Ivf { lists: None, code: ListCode::Rabitq(4), spill: false, score_threshold: 0.0 },
                Metric::L2,
            ),
            (
                "ivf_pq",
                None,
                &[("m", "4"), ("nbits", "4"), ("spill", "on")],
                Family::Ivf {
                    lists: None,
                    code: ListCode::Product { bits: 4, dims: 2 },
                    spill: true,
                    score_threshold: 0.0,
                },
                Metric::L2,
            ),
            (
                "scann",
                Some("vector_ip_ops"),
                &[("nlist", "8"), ("score_threshold", "0.25")],
                Family::Ivf {
                    lists: Some(8),
                    code: ListCode::Product { bits: 4, dims: 2 },
                    spill: true,
                    score_threshold: 0.25,
                },
                Metric::InnerProduct,
            ),
            ("auto", Some("cosine"), &[], Family::Auto, Metric::Cosine),
        ] {
            let spec = parsed(method, class, options).unwrap();
            assert_eq!((spec.family, spec.metric), (family, metric), "{method}");
            assert_eq!(IndexSpec::of_text(&spec.to_text()), Some(spec));
        }
    }

    #[test]
    fn what_does_not_exist_is_an_error_that_says_what_does() {
        for (method, class, options, says) in [
            ("quadtree", None, &[][..], "there are auto, graph"),
            ("hnsw", Some("vector_foo_ops"), &[], "vector_cosine_ops"),
            ("hnsw", Some("vector_l1_ops"), &[], "not built yet"),
            ("hnsw", Some("bit_hamming_ops"), &[], "hamming"),
            ("hnsw", None, &[("lists", "100")], "it has metric, m, ef_construction"),
            ("hnsw", None, &[("m", "1000")], "from 2 to 128"),
            ("ivf", None, &[("bits", "10")], "from 1 to 9"),
            ("ivf_pq", None, &[("m", "3")], "4, 2, 1, not 3"),
            ("ivf_pq", None, &[("bits", "6")], "4 or 8"),
            ("ivf", None, &[("spill", "perhaps")], "on or off"),
            ("scann", None, &[("score_threshold", "1")], "from 0 to below 1"),
            ("ivf", Some("vector_l2_ops"), &[("metric", "cosine")], "name one"),
            ("ivf", None, &[("lists", "9"), ("nlist", "9")], "given twice"),
        ] {
            let error = parsed(method, class, options).unwrap_err().to_string();
            assert!(error.contains(says), "{method} {options:?}: {error}");
        }
    }
}
