//! Flight's session options: every setting of ours, the catalog and the schema, and how answers are sent.

use std::collections::HashMap;

use engine::{CATALOG, DEFAULT_SCHEMA};
use tonic::Status;

use crate::messages::{
    GetSessionOptionsResult, OptionValue, SessionOptionValue, SetError, SetSessionOptionError, SetSessionOptionsResult,
};
use crate::sessions::{ClientSession, ENDPOINTS_MAX};
use crate::status::status_of;
use crate::wire::Types;

/// Which types answers have: `native`, `compatible` or `plain`.
const WIRE_TYPES: &str = "wire_types";
/// In how many parts answers may come.
const ENDPOINTS: &str = "endpoints";

impl ClientSession {
    /// Sets options; those that cannot be set are named with the reason, the others are set.
    pub(crate) fn set_options(&self, options: HashMap<String, SessionOptionValue>) -> SetSessionOptionsResult {
        let mut errors = HashMap::new();
        for (name, value) in options {
            if let Err(error) = self.set_option(&name, value.option_value) {
                errors.insert(name, SetSessionOptionError { value: error as i32 });
            }
        }
        SetSessionOptionsResult { errors }
    }

    fn set_option(&self, name: &str, value: Option<OptionValue>) -> Result<(), SetError> {
        let text = value.map(text).transpose()?;
        match name {
            "catalog" => is_fixed(text.as_deref(), CATALOG),
            "schema" => is_fixed(text.as_deref(), DEFAULT_SCHEMA),
            WIRE_TYPES => {
                let types = text.map(|text| Types::parse(&text).ok_or(SetError::InvalidValue)).transpose()?;
                self.set_types(types);
                Ok(())
            }
            ENDPOINTS => {
                let number = text.map(|text| text.parse().ok().filter(|number| (1..=ENDPOINTS_MAX).contains(number)));
                match number {
                    Some(None) => Err(SetError::InvalidValue),
                    number => {
                        self.set_endpoints(number.flatten());
                        Ok(())
                    }
                }
            }
            _ => {
                let settings = self.engine.all_settings().map_err(|_| SetError::Error)?;
                if !settings.iter().any(|(known, ..)| known == name) {
                    return Err(SetError::InvalidName);
                }
                let value = text.unwrap_or_else(|| "default".to_owned());
                self.engine.set_setting(name, &value).map_err(|_| SetError::InvalidValue)
            }
        }
    }

    /// All options.
    pub(crate) fn options(&self) -> Result<GetSessionOptionsResult, Status> {
        let settings = self.engine.all_settings().map_err(|error| status_of(&error))?;
        let mut options: HashMap<String, SessionOptionValue> =
            settings.into_iter().map(|(name, value, _)| (name, OptionValue::String(value).into())).collect();
        let mut say = |name: &str, value: OptionValue| options.insert(name.to_owned(), value.into());
        say("catalog", OptionValue::String(CATALOG.to_owned()));
        say("schema", OptionValue::String(DEFAULT_SCHEMA.to_owned()));
        if let Some(types) = self.chosen_types() {
            say(WIRE_TYPES, OptionValue::String(types.name().to_owned()));
        }
        if let Some(endpoints) = self.chosen_endpoints() {
            say(ENDPOINTS, OptionValue::Int64(i64::try_from(endpoints).unwrap_or(i64::MAX)));
        }
        Ok(GetSessionOptionsResult { session_options: options })
    }
}

/// Names that every session has, and that cannot be others.
fn is_fixed(value: Option<&str>, fixed: &str) -> Result<(), SetError> {
    if value.is_none_or(|value| value == fixed) { Ok(()) } else { Err(SetError::InvalidValue) }
}

fn text(value: OptionValue) -> Result<String, SetError> {
    Ok(match value {
        OptionValue::String(text) => text,
        OptionValue::Bool(value) => value.to_string(),
        OptionValue::Int64(value) => value.to_string(),
        OptionValue::Double(value) => value.to_string(),
        OptionValue::StringList(_) => return Err(SetError::InvalidValue),
    })
}

#[cfg(test)]
mod tests {
    use engine::{Engine, EngineOptions};

    use super::*;
    use crate::metrics::Metrics;
    use crate::options::Limits;
    use crate::sessions::Sessions;

    #[tokio::test]
    async fn options_are_settings_and_say_which_are_wrong() {
        let engine = Engine::open("memory:", EngineOptions::default()).await.unwrap();
        let sessions = Sessions::new(&engine, &Limits::default(), Metrics::new());
        let (_, session) = sessions.open(engine.session()).unwrap();
        let value = |text: &str| OptionValue::String(text.to_owned()).into();
        let set = |name: &str, option: SessionOptionValue| {
            let result = session.set_options(HashMap::from([(name.to_owned(), option)]));
            result.errors.get(name).map(|error| error.value())
        };
        assert_eq!(set("exact", OptionValue::Bool(true).into()), None);
        assert_eq!(set("recall_target", OptionValue::Double(0.9).into()), None);
        assert_eq!(set("recall_target", value("2")), Some(SetError::InvalidValue));
        assert_eq!(set("nothing", value("1")), Some(SetError::InvalidName));
        assert_eq!(set("schema", value(DEFAULT_SCHEMA)), None);
        assert_eq!(set("schema", value("other")), Some(SetError::InvalidValue));
        assert_eq!(set(WIRE_TYPES, value("plain")), None);
        assert_eq!(set(WIRE_TYPES, value("odd")), Some(SetError::InvalidValue));
        let options = session.options().unwrap().session_options;
        let text = |name: &str| match options[name].option_value.clone() {
            Some(OptionValue::String(text)) => text,
            other => format!("{other:?}"),
        };
        assert_eq!(
            (text("exact"), text("recall_target"), text(WIRE_TYPES)),
            ("on".into(), "0.9".into(), "plain".into())
        );
        assert_eq!(set("exact", SessionOptionValue { option_value: None }), None);
        assert_eq!(text("catalog"), CATALOG);
    }
}
