//! Reads the keys of a `scheduler_config.json`, one type at a time; a fault names the key, its value and what would do.

use serde_json::{Map, Value};

use super::{Error, Result};

/// The keys of one file. A key that is absent gives `None`: what that means is up to the sampler that asks.
pub(super) struct Keys(Map<String, Value>);

impl Keys {
    /// Reads JSON as Python writes it, where `Infinity`, `-Infinity` and `NaN` may stand for numbers (diffusers writes
    /// `"lambda_min_clipped": -Infinity`); they become strings here.
    pub(super) fn parse(text: &str) -> Result<Self> {
        match serde_json::from_str(&quote_constants(text)) {
            Ok(Value::Object(keys)) => Ok(Self(keys)),
            Ok(other) => Err(Error::Json { reason: format!("expected an object of keys, found {}", shown(&other)) }),
            Err(error) => Err(Error::Json { reason: error.to_string() }),
        }
    }

    pub(super) fn contains(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// One of several words.
    pub(super) fn word<T: Copy>(&self, key: &str, words: &[(&str, T)]) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match words.iter().find(|(word, _)| value.as_str() == Some(word)) {
            Some((_, meaning)) => Ok(Some(*meaning)),
            None => Err(self.fault(key, &listed(words.iter().map(|(word, _)| *word)))),
        }
    }

    /// `null` is false, as in Python.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Null) => Ok(Some(false)),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(self.fault(key, "true, false")),
        }
    }

    /// A whole number from 0.
    pub(super) fn count(&self, key: &str, most: usize) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let count = value.as_u64().and_then(|count| usize::try_from(count).ok()).filter(|count| *count <= most);
        count.map(Some).ok_or_else(|| self.fault(key, &format!("a whole number from 0 to {most}")))
    }

    /// A finite number; `null` is as good as absent.
    pub(super) fn number(&self, key: &str, supported: &str, allowed: impl Fn(f64) -> bool) -> Result<Option<f64>> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) if number.is_finite() && allowed(number) => Ok(Some(number)),
                _ => Err(self.fault(key, supported)),
            },
        }
    }

    /// A list of numbers; `null` is as good as absent.
    pub(super) fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let list = value.as_array().and_then(|list| list.iter().map(Value::as_f64).collect());
                list.map(Some).ok_or_else(|| self.fault(key, "null, or a list of numbers"))
            }
        }
    }

    pub(super) fn fault(&self, key: &str, supported: &str) -> Error {
        Error::Config { key: key.to_owned(), value: self.shown(key), supported: supported.to_owned() }
    }

    /// A key's value as JSON, cut when it is long.
    pub(super) fn shown(&self, key: &str) -> String {
        self.get(key).map_or_else(|| "absent".to_owned(), shown)
    }
}

fn listed<'a>(words: impl Iterator<Item = &'a str>) -> String {
    words.map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ")
}

fn shown(value: &Value) -> String {
    const MOST: usize = 80;
    let text = value.to_string();
    if text.chars().count() <= MOST { text } else { text.chars().take(MOST).chain("...".chars()).collect() }
}

/// Puts Python's bare number words, where they stand outside strings, between quotation marks.
fn quote_constants(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut in_string = false;
    while let Some(character) = rest.chars().next() {
        if in_string {
            let escaped = character == '\\';
            in_string = character != '"';
            let taken = if escaped { rest.chars().take(2).map(char::len_utf8).sum() } else { character.len_utf8() };
            out.push_str(&rest[..taken]);
            rest = &rest[taken..];
            continue;
        }
        match ["-Infinity", "Infinity", "NaN"].into_iter().find(|word| rest.starts_with(word)) {
            Some(word) => {
                out.extend(["\"", word, "\""]);
                rest = &rest[word.len()..];
            }
            None => {
                in_string = character == '"';
                out.push(character);
                rest = &rest[character.len_utf8()..];
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn python_number_words_are_read_outside_strings_only() {
        let keys = Keys::parse(r#"{"a": -Infinity, "b": [NaN, Infinity], "c": "NaN \" -Infinity é"}"#).unwrap();
        assert_eq!(keys.shown("a"), r#""-Infinity""#);
        assert_eq!(keys.shown("b"), r#"["NaN","Infinity"]"#);
        assert_eq!(keys.get("c").unwrap().as_str(), Some(r#"NaN " -Infinity é"#));
    }

    #[test]
    fn what_is_not_an_object_is_refused() {
        for text in ["", "[", "{\"a\": }", "[1]", "null", "\"unterminated", "\"\\"] {
            assert!(matches!(Keys::parse(text), Err(Error::Json { .. })), "{text}");
        }
    }
}
