//! The configuration file: TOML, with a place for every complaint.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{ConfigError, KEYS, Key, Origin, Settings, Value};

/// The settings in `text`, the content of the file at `path`.
pub(super) fn parse(path: &Path, text: &str) -> Result<Settings, ConfigError> {
    let file = File { path, text };
    let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        path: path.to_owned(),
        line: file.line(error.span().map_or(0, |span| span.start)),
        problem: error.message().to_owned(),
    })?;
    let mut settings = Settings::default();
    file.take(&mut settings, "", table.get_ref())?;
    Ok(settings)
}

struct File<'a> {
    path: &'a Path,
    text: &'a str,
}

impl File<'_> {
    /// The line, from 1, in which the byte at `offset` stands.
    fn line(&self, offset: usize) -> usize {
        let before = self.text.bytes().take(offset);
        before
            .filter(|&byte| byte == b'\n')
            .count()
            .saturating_add(1)
    }

    /// Takes over all of `table`, whose keys begin with `prefix`.
    fn take(
        &self,
        settings: &mut Settings,
        prefix: &str,
        table: &DeTable<'_>,
    ) -> Result<(), ConfigError> {
        for (key, value) in table {
            let name = format!("{prefix}{}", key.get_ref());
            let line = self.line(key.span().start);
            let below = format!("{name}.");
            if let Some(key) = KEYS.iter().find(|key| key.name == name) {
                self.put(settings, key, value)?;
            } else if let (DeValue::Table(inner), true) = (value.get_ref(), is_table(&below)) {
                self.take(settings, &below, inner)?;
            } else if is_table(&below) {
                return Err(ConfigError::Syntax {
                    path: self.path.to_owned(),
                    line,
                    problem: format!("`{name}` must be a table, [{name}], not {}", kind(value)),
                });
            } else {
                return Err(ConfigError::UnknownKey {
                    path: self.path.to_owned(),
                    line,
                    nearest: nearest(&name),
                    key: name,
                });
            }
        }
        Ok(())
    }

    fn put(
        &self,
        settings: &mut Settings,
        key: &'static Key,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<(), ConfigError> {
        (key.put)(settings, to_value(value.get_ref())).map_err(|problem| ConfigError::Value {
            key: key.name,
            origin: Origin::File {
                path: self.path.to_owned(),
                line: self.line(value.span().start),
            },
            problem,
        })
    }
}

/// Whether settings begin with `prefix`, which ends in a dot.
fn is_table(prefix: &str) -> bool {
    KEYS.iter().any(|key| key.name.starts_with(prefix))
}

fn kind(value: &Spanned<DeValue<'_>>) -> &'static str {
    to_value(value.get_ref()).kind()
}

fn to_value(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::Text(text.clone().into_owned()),
        // The digits as they stand, so that a number over any integer's range is reported as it was written.
        DeValue::Integer(integer) if integer.radix() == 10 => {
            Value::Number(integer.as_str().trim_start_matches('+').to_owned())
        }
        DeValue::Integer(integer) => u64::from_str_radix(integer.as_str(), integer.radix())
            .map_or_else(
                |_| Value::Number(integer.as_str().to_owned()),
                |number| Value::Number(number.to_string()),
            ),
        DeValue::Array(items) => items
            .iter()
            .map(|item| item.get_ref().as_str().map(str::to_owned))
            .collect::<Option<_>>()
            .map_or(
                Value::Other("a list of something else than texts"),
                Value::List,
            ),
        DeValue::Float(_) => Value::Other("a number with a fraction"),
        DeValue::Boolean(truth) => Value::Truth(*truth),
        DeValue::Datetime(_) => Value::Other("a date"),
        DeValue::Table(_) => Value::Other("a table"),
    }
}

/// The known key that `name` may have been meant to be: a few letters differ, or the dash and the underscore, or the table.
fn nearest(name: &str) -> Option<&'static str> {
    let plain = |text: &str| text.to_ascii_lowercase().replace('-', "_");
    let name = plain(name);
    let last = |text: &str| text.rsplit('.').next().unwrap_or_default().to_owned();
    let tables = KEYS.iter().filter_map(|key| key.name.split_once('.'));
    KEYS.iter()
        .map(|key| key.name)
        .chain(tables.map(|(table, _)| table))
        .map(|known| {
            let whole = distance(&name, known);
            // Right name, wrong table.
            let tail = distance(&last(&name), &last(known)).saturating_add(1);
            (whole.min(tail), known)
        })
        .min_by_key(|&(distance, _)| distance)
        .filter(|&(distance, nearest)| distance <= nearest.len().div_ceil(3).min(4))
        .map(|(_, nearest)| nearest)
}

/// How many letters to insert, remove or replace to make `a` of `b` (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    /// Longer keys are no misspelling of any of ours, and would cost quadratic time.
    const LENGTH_MAX: usize = 64;
    let letters = |text: &str| -> Vec<char> { text.chars().take(LENGTH_MAX).collect() };
    let (a, b) = (letters(a), letters(b));
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (number, from) in (1_usize..).zip(&a) {
        let mut left = number;
        let mut row = vec![left];
        for (to, pair) in b.iter().zip(above.windows(2)) {
            let &[diagonal, up] = pair else { break };
            left = up
                .min(left)
                .saturating_add(1)
                .min(diagonal.saturating_add(usize::from(from != to)));
            row.push(left);
        }
        above = row;
    }
    above.last().copied().unwrap_or_default()
}
