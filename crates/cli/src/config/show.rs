//! The configuration as TOML, each value with its origin. It can be read back, but for what is masked.

use super::keys::{KEYS, Key};
use super::layers::STORAGE_PREFIX;
use super::{Config, Origin};

/// What stands for a secret.
const MASK: &str = "********";
/// Parts of names whose values nobody should read over a shoulder.
const SECRET_WORDS: [&str; 8] = ["secret", "key", "token", "password", "passwd", "credential", "signature", "sas"];
/// Origins stand in one column, if the values before them are not too long.
const VALUE_WIDTH_MAX: usize = 48;

impl Config {
    /// All settings as TOML, the origin of each behind it, and what each is for above it if `explain`.
    pub fn to_toml(&self, explain: bool) -> String {
        let mut text = String::new();
        let read = match &self.file {
            Some(path) => format!("with {}", path.display()),
            None => "without a file".to_owned(),
        };
        text.push_str(&format!(
            "# Sagitta {}, {read}. Behind each value: where it comes from.\n",
            env!("CARGO_PKG_VERSION")
        ));
        let mut settings = self.settings.clone();
        let mut section = "";
        for key in KEYS {
            let (in_section, name) = key.name.split_once('.').unwrap_or(("", key.name));
            if in_section != section {
                if section.is_empty() {
                    self.show_storage(&mut text);
                }
                text.push_str(&format!("\n[{in_section}]\n"));
                section = in_section;
            }
            if explain {
                text.push_str(&format!("# {}\n", explanation(key)));
            }
            let value = key.show(&mut settings);
            push_line(&mut text, &format!("{name} = {value}"), self.origin(key.name));
        }
        text
    }

    fn show_storage(&self, text: &mut String) {
        if self.settings.storage.is_empty() {
            return;
        }
        text.push_str("\n[storage]\n");
        for (option, value) in &self.settings.storage {
            let shown = if is_secret(option) { MASK } else { value };
            let is_bare = option.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
            let option_shown = if is_bare { option.clone() } else { toml::Value::from(option.as_str()).to_string() };
            let line = format!("{option_shown} = {}", toml::Value::from(shown));
            push_line(text, &line, self.origin(&format!("{STORAGE_PREFIX}{option}")));
        }
    }
}

fn explanation(key: &Key) -> String {
    let variable = key.variable();
    if key.absent.is_empty() {
        format!("{} ({variable})", key.help)
    } else {
        format!("{}; none: {} ({variable})", key.help, key.absent)
    }
}

fn push_line(text: &mut String, line: &str, origin: &Origin) {
    text.push_str(&format!("{line:<VALUE_WIDTH_MAX$}  # {origin}\n"));
}

/// Whether the option of an object store is one that is not shown.
fn is_secret(option: &str) -> bool {
    let option = option.to_ascii_lowercase();
    SECRET_WORDS.iter().any(|word| option.contains(word))
}
