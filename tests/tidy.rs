//! Checks that the code still has the shape that `crates/README.md` and the style guide draw.
//!
//! Each test lists every place that breaks its rule. What the compiler or clippy can check is not repeated here.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

const CODE_LINES_MAX: usize = 800;
const TEST_LINES_MAX: usize = 300;

/// Where `unsafe` may stand: the kernels, the one place that maps files, and the one that sets Lance's environment before any
/// thread runs.
const UNSAFE_MAY_BE_IN: [&str; 4] =
    ["crates/kernels/", "benches/", "crates/storage/src/map.rs", "crates/cli/src/main.rs"];

/// Words that say nothing about what a file or module holds.
const EMPTY_NAMES: [&str; 10] =
    ["util", "utils", "helper", "helpers", "common", "misc", "manager", "managers", "stuff", "shared"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The files of this repository with this ending, and their text, in order of path.
fn sources(ending: &str) -> Vec<(String, String)> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git lists the files");
    assert!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    let mut found: Vec<(String, String)> = String::from_utf8(listed.stdout)
        .unwrap()
        .lines()
        .filter(|path| path.ends_with(ending))
        .filter_map(|path| Some((path.to_owned(), std::fs::read_to_string(root().join(path)).ok()?)))
        .collect();
    found.sort();
    assert!(!found.is_empty(), "no file ends with {ending}: the search is broken");
    found
}

/// Fails with every line of `wrong`.
fn none(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

/// `line` without its comment and without the text of its string literals.
fn code_of(line: &str) -> String {
    let (mut code, mut in_text, mut previous) = (String::new(), false, ' ');
    let mut letters = line.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if previous != '\\' && previous != '\'' => in_text = !in_text,
            '/' if !in_text && letters.peek() == Some(&'/') => break,
            _ if !in_text => code.push(letter),
            _ => {}
        }
        previous = if previous == '\\' { ' ' } else { letter };
    }
    code
}

fn has_word(text: &str, word: &str) -> bool {
    text.split(|letter: char| !letter.is_alphanumeric() && letter != '_').any(|found| found == word)
}

fn allowed_arrows() -> BTreeMap<String, BTreeSet<String>> {
    let map = std::fs::read_to_string(root().join("crates/README.md")).unwrap();
    let ticked = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    map.lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.split('|').collect();
            let name = ticked(cells.get(1)?).pop()?;
            Some((name, ticked(cells.get(2)?).into_iter().collect()))
        })
        .collect()
}

fn packages() -> Vec<serde_json::Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

#[test]
fn crate_dependencies_follow_the_drawn_arrows() {
    let allowed = allowed_arrows();
    let (mut wrong, mut seen) = (vec![], BTreeSet::new());
    for package in packages() {
        if !package["manifest_path"].as_str().unwrap().contains("/crates/") {
            continue;
        }
        let name = package["name"].as_str().unwrap();
        seen.insert(name.to_owned());
        let Some(may) = allowed.get(name) else {
            wrong.push(format!("{name}: no row in crates/README.md"));
            continue;
        };
        for dependency in package["dependencies"].as_array().unwrap() {
            let other = dependency["name"].as_str().unwrap();
            if dependency["kind"].is_null() && dependency["path"].is_string() && !may.contains(other) {
                wrong.push(format!("{name} -> {other}: not drawn in crates/README.md"));
            }
        }
    }
    wrong
        .extend(allowed.keys().filter(|name| !seen.contains(*name)).map(|name| format!("{name}: drawn, but no crate")));
    none(&wrong);
}

#[test]
fn folder_and_package_have_one_name() {
    let wrong: Vec<String> = packages()
        .iter()
        .filter_map(|package| {
            let name = package["name"].as_str().unwrap();
            let folder = Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap();
            (folder.file_name().unwrap() != name).then(|| format!("{name} lives in {}", folder.display()))
        })
        .collect();
    none(&wrong);
}

#[test]
fn only_storage_names_lance_and_object_store() {
    let mut wrong = vec![];
    for (path, text) in sources("Cargo.toml") {
        if path == "Cargo.toml" || path.starts_with("crates/storage/") {
            continue;
        }
        for line in text.lines() {
            let name = line.split(['.', '=', ' ']).next().unwrap();
            if name == "lance" || name.starts_with("lance-") || name.starts_with("object_store") {
                wrong.push(format!("{path}: {line}"));
            }
        }
    }
    none(&wrong);
}

#[test]
fn every_source_file_says_what_lives_in_it() {
    let wrong: Vec<String> = sources(".rs")
        .iter()
        .filter(|(_, text)| !text.starts_with("//!"))
        .map(|(path, _)| format!("{path}: does not open with //!"))
        .collect();
    none(&wrong);
}

#[test]
fn files_and_their_tests_stay_short() {
    let mut wrong = vec![];
    for (path, text) in sources(".rs") {
        let lines: Vec<&str> = text.lines().collect();
        let is_test_file = path.starts_with("tests/") || path.ends_with("/tests.rs") || path.contains("/tests/");
        let inline = lines
            .windows(2)
            .position(|pair| pair[0].trim() == "#[cfg(test)]" && pair[1].contains("mod ") && pair[1].contains('{'));
        let (code, tests) = match inline {
            Some(start) => (start, lines.len() - start),
            None => (lines.len(), 0),
        };
        if code > CODE_LINES_MAX && !is_test_file {
            wrong.push(format!("{path}: {code} lines before its tests, {CODE_LINES_MAX} at most"));
        }
        if tests > TEST_LINES_MAX {
            wrong.push(format!(
                "{path}: {tests} lines of tests inside; over {TEST_LINES_MAX} they move to their own tests.rs"
            ));
        }
    }
    none(&wrong);
}

#[test]
fn unsafe_stands_where_it_may_and_says_why() {
    let mut wrong = vec![];
    for (path, text) in sources(".rs") {
        let lines: Vec<&str> = text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            if !has_word(&code_of(line), "unsafe") {
                continue;
            }
            if !UNSAFE_MAY_BE_IN.iter().any(|place| path.starts_with(place)) {
                wrong.push(format!("{path}:{}: unsafe outside the kernels", index + 1));
            } else if code_of(line).contains("unsafe {") && !has_safety_beside(&lines, index) {
                wrong.push(format!("{path}:{}: unsafe without a SAFETY comment", index + 1));
            }
        }
    }
    none(&wrong);
}

/// On the line itself, or in the comment that ends directly above it (attributes and the head of the same statement between).
fn has_safety_beside(lines: &[&str], index: usize) -> bool {
    lines[index.saturating_sub(8)..=index].iter().any(|line| line.contains("SAFETY:"))
}

#[test]
fn open_work_names_its_issue() {
    let mut wrong = vec![];
    for (path, text) in sources(".rs").into_iter().chain(sources(".py")).chain(sources(".sh")) {
        if path == "tests/tidy.rs" {
            continue;
        }
        for (index, line) in text.lines().enumerate() {
            for mark in ["TODO", "FIXME", "XXX", "HACK"] {
                let named = line.split_once(mark).is_some_and(|(_, rest)| rest.starts_with("(#"));
                if has_word(line, mark) && !named {
                    wrong.push(format!("{path}:{}: {mark} without the number of an issue: {mark}(#12)", index + 1));
                }
            }
        }
    }
    none(&wrong);
}

#[test]
fn names_say_what_is_inside() {
    let mut wrong = vec![];
    for (path, _) in sources(".rs").into_iter().chain(sources(".py")) {
        let parts = path.trim_end_matches(".rs").trim_end_matches(".py").split('/');
        if let Some(part) = parts.clone().find(|part| EMPTY_NAMES.contains(part)) {
            wrong.push(format!("{path}: {part:?} says nothing"));
        }
    }
    none(&wrong);
}

#[test]
fn local_links_in_the_pages_lead_somewhere() {
    let mut wrong = vec![];
    for (path, text) in sources(".md") {
        let folder = root().join(&path).parent().unwrap().to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap();
            let is_local = !target.is_empty() && !target.contains("://");
            if is_local && !folder.join(target).exists() {
                wrong.push(format!("{path}: {link} leads nowhere"));
            }
        }
    }
    none(&wrong);
}

#[test]
fn the_changelog_is_open() {
    let text = std::fs::read_to_string(root().join("CHANGELOG.md")).unwrap();
    let open = text.split("\n## ").find(|part| part.starts_with("Unreleased")).expect("a section `## Unreleased`");
    assert!(open.lines().any(|line| line.starts_with("- ")), "nothing is listed under Unreleased");
}

#[test]
fn no_page_or_source_names_the_machine_it_was_written_on() {
    let mut wrong = vec![];
    for ending in [".rs", ".py", ".sh", ".md", ".toml", ".sql", ".slt"] {
        for (path, text) in sources(ending) {
            for (index, line) in text.lines().enumerate() {
                let home = ["/ro", "ot/"].concat();
                let work = ["/wo", "rk/"].concat();
                if line.contains(&home) || line.contains(&work) {
                    wrong.push(format!("{path}:{}: {line}", index + 1));
                }
            }
        }
    }
    none(&wrong);
}

#[test]
fn the_check_for_unsafe_reads_code_only() {
    assert!(has_word(&code_of("    unsafe { kernel() }"), "unsafe"));
    assert!(!has_word(&code_of("// unsafe is not needed here"), "unsafe"));
    assert!(!has_word(&code_of("let text = \"unsafe\";"), "unsafe"));
    assert!(!has_word(&code_of("#![forbid(unsafe_code)]"), "unsafe"));
}
