//! What the tab key offers: names that exist and fit where the cursor stands.
//!
//! Pure functions over the typed text and a copy of the session's vocabulary; the copy is `shell`'s to refresh.

use engine::Vocabulary;
use engine::text::{TokenClass, tokens};
use rustyline::completion::Pair;

use super::meta;
use crate::print::Format;

/// Words after which the name of a table is expected.
const BEFORE_TABLE: [&str; 9] = ["FROM", "JOIN", "INTO", "UPDATE", "TABLE", "VIEW", "COPY", "DESCRIBE", "ON"];
/// Words after which the name of a setting is expected.
const BEFORE_SETTING: [&str; 3] = ["SET", "SHOW", "RESET"];
/// Words that begin the parts of a statement: the last of them says what its list holds.
const CLAUSES: [&str; 11] =
    ["SELECT", "FROM", "WHERE", "GROUP", "HAVING", "QUALIFY", "ORDER", "LIMIT", "SET", "VALUES", "ON"];

/// What may be written here, and where in the text the word under the cursor begins.
///
/// `pos` is the byte in `line` at which the cursor stands.
pub fn complete(vocabulary: &Vocabulary, line: &str, pos: usize) -> (usize, Vec<Pair>) {
    let typed = &line[..pos];
    if typed.trim_start().starts_with('\\') {
        return complete_meta(vocabulary, typed);
    }
    let words = Words::of(line);
    if words.inside_text(pos) {
        return (pos, Vec::new());
    }
    let start = word_start(typed);
    let prefix = typed[start..].trim_start_matches('"');
    let mut offers = Offers { prefix: prefix.to_lowercase(), pairs: Vec::new() };
    let before = words.before(start);
    if let Some(qualifier) = qualifier(&typed[..start]) {
        offer_members(vocabulary, &words, &qualifier, &mut offers);
    } else if before.last_is(&BEFORE_SETTING) {
        offers.names(&vocabulary.settings, " ");
    } else if before.expects_table() {
        offer_tables(vocabulary, &mut offers);
        offers.functions(&vocabulary.functions, |name| name.ends_with("_search"));
        offers.keywords(&vocabulary.keywords, prefix);
    } else {
        offer_expression(vocabulary, &words, &mut offers);
        offers.keywords(&vocabulary.keywords, prefix);
    }
    (start, offers.pairs)
}

fn complete_meta(vocabulary: &Vocabulary, typed: &str) -> (usize, Vec<Pair>) {
    let indent = typed.len() - typed.trim_start().len();
    let Some((command, argument)) = typed[indent..].split_once(char::is_whitespace) else {
        let mut offers = Offers { prefix: typed[indent..].to_lowercase(), pairs: Vec::new() };
        for name in meta::names() {
            offers.push(name, &format!("{name} "));
        }
        return (indent, offers.pairs);
    };
    let start = typed.len() - argument.trim_start().len();
    let mut offers = Offers { prefix: typed[start..].trim_start_matches('"').to_lowercase(), pairs: Vec::new() };
    match command {
        "\\d" | "\\dt" | "\\dv" => match qualifier_within(&typed[start..]) {
            Some((schema, at)) => {
                offers.prefix = typed[start + at..].to_lowercase();
                offer_tables_of(vocabulary, &schema, &mut offers);
                return (start + at, offers.pairs);
            }
            None => offer_tables(vocabulary, &mut offers),
        },
        "\\df" => offers.names(&vocabulary.functions, ""),
        "\\format" => {
            for format in <Format as clap::ValueEnum>::value_variants() {
                offers.push(&format.name(), &format.name());
            }
        }
        "\\i" | "\\o" => return complete_path(typed, start),
        _ => {}
    }
    (start, offers.pairs)
}

fn complete_path(typed: &str, start: usize) -> (usize, Vec<Pair>) {
    let files = rustyline::completion::FilenameCompleter::new();
    match files.complete_path(&typed[start..], typed.len() - start) {
        Ok((at, pairs)) => (start + at, pairs),
        Err(_) => (start, Vec::new()),
    }
}

/// Columns of a table or alias, or tables of a schema.
fn offer_members(vocabulary: &Vocabulary, words: &Words<'_>, qualifier: &str, offers: &mut Offers) {
    let qualifier = qualifier.to_lowercase();
    let table = words.table_of_alias(vocabulary, &qualifier).unwrap_or_else(|| qualifier.clone());
    for words in vocabulary.tables.iter().filter(|words| words.table.to_lowercase() == table) {
        offers.names(&words.columns, "");
    }
    offer_tables_of(vocabulary, &qualifier, offers);
}

fn offer_tables_of(vocabulary: &Vocabulary, schema: &str, offers: &mut Offers) {
    let tables = vocabulary.tables.iter().filter(|words| words.schema.to_lowercase() == schema.to_lowercase());
    offers.names(tables.map(|words| &words.table), "");
}

/// Tables of the default schema by name, those of others behind their schema.
fn offer_tables(vocabulary: &Vocabulary, offers: &mut Offers) {
    let public = vocabulary.tables.iter().filter(|words| words.schema == "public");
    offers.names(public.map(|words| &words.table), "");
    let mut schemas: Vec<&String> = vocabulary.tables.iter().map(|words| &words.schema).collect();
    schemas.sort();
    schemas.dedup();
    offers.names(schemas.into_iter().filter(|schema| *schema != "public"), ".");
}

/// Columns of the tables that the statement names (of all tables if it names none), and functions.
fn offer_expression(vocabulary: &Vocabulary, words: &Words<'_>, offers: &mut Offers) {
    let mentioned = |name: &str| words.names().any(|word| word.eq_ignore_ascii_case(name));
    let any = vocabulary.tables.iter().any(|table| mentioned(&table.table));
    for table in &vocabulary.tables {
        let is_mentioned = mentioned(&table.table);
        if is_mentioned || (!any && table.schema == "public") {
            offers.names(&table.columns, "");
        }
        if is_mentioned {
            offers.names([&table.table], "");
        }
    }
    offers.functions(&vocabulary.functions, |_| true);
}

/// The candidates so far: what begins with the prefix, each once.
struct Offers {
    /// In lower case.
    prefix: String,
    pairs: Vec<Pair>,
}

impl Offers {
    fn push(&mut self, name: &str, replacement: &str) {
        let fits = name.to_lowercase().starts_with(&self.prefix);
        if fits && !self.pairs.iter().any(|pair| pair.display.eq_ignore_ascii_case(name)) {
            self.pairs.push(Pair { display: name.to_owned(), replacement: replacement.to_owned() });
        }
    }

    fn names<'n>(&mut self, names: impl IntoIterator<Item = &'n String>, suffix: &str) {
        for name in names {
            self.push(name, &format!("{}{suffix}", quoted(name)));
        }
    }

    fn functions(&mut self, names: &[String], is_wanted: impl Fn(&str) -> bool) {
        for name in names.iter().filter(|name| is_wanted(name)) {
            self.push(name, &format!("{name}("));
        }
    }

    /// Keywords take the case of what has been typed.
    fn keywords(&mut self, names: &[String], prefix: &str) {
        if prefix.is_empty() {
            return;
        }
        let is_lower = prefix.chars().all(|c| !c.is_uppercase());
        for name in names {
            let name = if is_lower { name.to_lowercase() } else { name.to_uppercase() };
            self.push(&name, &format!("{name} "));
        }
    }
}

/// A name as SQL reads it back.
pub fn quoted(name: &str) -> String {
    let is_plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '.');
    if is_plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// Where the word that ends with `typed` begins.
fn word_start(typed: &str) -> usize {
    let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == '$' || c == '"';
    typed.char_indices().rev().take_while(|(_, c)| is_part(*c)).last().map_or(typed.len(), |(at, _)| at)
}

/// The name before a dot that ends `typed`.
fn qualifier(typed: &str) -> Option<String> {
    let before = typed.strip_suffix('.')?;
    let name = before[word_start(before)..].trim_matches('"');
    (!name.is_empty()).then(|| name.to_owned())
}

fn qualifier_within(argument: &str) -> Option<(String, usize)> {
    let dot = argument.find('.')?;
    Some((argument[..dot].trim_matches('"').to_owned(), dot + 1))
}

/// The tokens of a text, without comments.
struct Words<'a> {
    text: &'a str,
    tokens: Vec<(std::ops::Range<usize>, TokenClass)>,
}

impl<'a> Words<'a> {
    fn of(text: &'a str) -> Words<'a> {
        Words { text, tokens: tokens(text) }
    }

    /// Whether the cursor stands in a comment, or in a text that may still be open.
    fn inside_text(&self, pos: usize) -> bool {
        self.tokens.iter().any(|(range, class)| {
            let within = range.start < pos && pos < range.end;
            let at_end = range.start < pos && pos == range.end;
            match class {
                TokenClass::Text => within,
                TokenClass::Comment => within || (at_end && self.text[range.clone()].starts_with("--")),
                TokenClass::Other => (within || at_end) && self.text[range.clone()].starts_with(['\'', '$']),
                _ => false,
            }
        })
    }

    /// What stands before `start` in the same statement.
    fn before(&self, start: usize) -> Before<'a> {
        let mut words = Vec::new();
        for (range, class) in self.tokens.iter().filter(|(range, _)| range.end <= start) {
            let word = &self.text[range.clone()];
            match class {
                TokenClass::Comment => {}
                TokenClass::Operator if word == ";" => words.clear(),
                _ => words.push(word),
            }
        }
        Before { words }
    }

    fn names(&self) -> impl Iterator<Item = &'a str> {
        self.tokens
            .iter()
            .filter(|(_, class)| !matches!(class, TokenClass::Text | TokenClass::Number | TokenClass::Comment))
            .map(|(range, _)| self.text[range.clone()].trim_matches('"'))
    }

    /// The table that `alias` stands for: `table alias` or `table AS alias`.
    fn table_of_alias(&self, vocabulary: &Vocabulary, alias: &str) -> Option<String> {
        let names: Vec<&str> = self.names().collect();
        let is_table = |word: &str| vocabulary.tables.iter().any(|table| table.table.eq_ignore_ascii_case(word));
        let found = names.iter().enumerate().find(|(place, word)| {
            let after = &names[place + 1..];
            let after =
                if after.first().is_some_and(|word| word.eq_ignore_ascii_case("as")) { &after[1..] } else { after };
            is_table(word) && after.first().is_some_and(|word| word.eq_ignore_ascii_case(alias))
        });
        found.map(|(_, word)| word.to_lowercase())
    }
}

/// The words of a statement up to the cursor.
struct Before<'a> {
    words: Vec<&'a str>,
}

impl Before<'_> {
    fn last_is(&self, words: &[&str]) -> bool {
        self.words.last().is_some_and(|last| words.iter().any(|word| word.eq_ignore_ascii_case(last)))
    }

    /// After `FROM` and its like, and after a comma in a FROM list.
    fn expects_table(&self) -> bool {
        if self.last_is(&["ON"]) {
            // `JOIN t ON` is followed by a condition, `CREATE INDEX i ON` by a table.
            return self.words.first().is_some_and(|word| word.eq_ignore_ascii_case("CREATE"));
        }
        if self.last_is(&BEFORE_TABLE) {
            return true;
        }
        let is_clause = |word: &&&str| CLAUSES.iter().any(|clause| clause.eq_ignore_ascii_case(word));
        self.last_is(&[","])
            && self.words.iter().rev().find(is_clause).is_some_and(|word| word.eq_ignore_ascii_case("FROM"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::TableWords;

    fn vocabulary() -> Vocabulary {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let table = |schema: &str, table: &str, columns: &[&str]| TableWords {
            schema: schema.to_owned(),
            table: table.to_owned(),
            columns: owned(columns),
        };
        let tables = vec![
            table("public", "docs", &["id", "emb", "Title"]),
            table("public", "data", &["id", "summary"]),
            table("system", "tables", &["rows"]),
        ];
        Vocabulary {
            keywords: owned(&["SELECT", "FROM", "WHERE", "ORDER", "LIMIT"]),
            tables,
            functions: owned(&["cosine_distance", "count", "vector_search"]),
            settings: owned(&["recall_target", "require_index"]),
        }
    }

    /// `typed` holds the cursor as `|`; the offers are compared as they would be inserted.
    fn check(typed: &str, expected: &[&str]) {
        let pos = typed.find('|').unwrap();
        let line = typed.replace('|', "");
        let (start, pairs) = complete(&vocabulary(), &line, pos);
        let offers: Vec<String> = pairs.into_iter().map(|pair| pair.replacement).collect();
        assert_eq!(offers, expected, "{typed}");
        assert!(start <= pos && line.is_char_boundary(start));
    }

    #[test]
    fn tables_are_offered_where_tables_are_expected() {
        check("SELECT * FROM d|", &["docs", "data"]);
        check("SELECT * FROM docs JOIN da|", &["data"]);
        check("SELECT * FROM docs, d|", &["docs", "data"]);
        check("INSERT INTO do|", &["docs"]);
        check("SELECT * FROM sys|", &["system."]);
        check("SELECT * FROM system.|", &["tables"]);
        check("SELECT * FROM vec|", &["vector_search("]);
    }

    #[test]
    fn columns_come_from_the_tables_of_the_statement() {
        check("SELECT s| FROM data", &["summary", "select "]);
        check("SELECT s| FROM docs", &["select "]);
        check("SELECT e|", &["emb"]);
        check("SELECT x.| FROM docs AS x", &["id", "emb", "\"Title\""]);
        check("SELECT x.e| FROM docs x", &["emb"]);
        check("SELECT docs.i|", &["id"]);
        check("SELECT 1; SELECT * FROM docs WHERE em|", &["emb"]);
    }

    #[test]
    fn settings_and_functions_have_their_places() {
        check("SET re|", &["recall_target ", "require_index "]);
        check("show rec|", &["recall_target "]);
        check("SELECT co| FROM docs", &["cosine_distance(", "count("]);
    }

    #[test]
    fn keywords_take_the_case_of_what_was_typed() {
        check("SEL|", &["SELECT "]);
        check("sel|", &["select "]);
        check("Sel|", &["SELECT "]);
    }

    #[test]
    fn nothing_is_offered_within_texts_and_comments() {
        check("SELECT 'e|'", &[]);
        check("SELECT 'e|", &[]);
        check("SELECT 1 -- e|", &[]);
    }

    #[test]
    fn meta_commands_complete_their_arguments() {
        check("\\tim|", &["\\timing "]);
        check("\\d do|", &["docs"]);
        check("\\d system.t|", &["tables"]);
        check("\\format js|", &["json", "jsonl"]);
    }
}
