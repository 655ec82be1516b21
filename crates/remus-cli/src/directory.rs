//! What the node says it has: services, methods, topics, peers. Spec: core, directory.

use bytes::Bytes;
use remus::{ErrorCode, MethodKind, Raw, ServiceDescription, TopicDescription};
use serde::Deserialize;
use serde_json::Value;

use crate::connect::Node;
use crate::failure::{Failure, Outcome};

/// The method that tells.
const LIST: &str = "remus.v2.Directory/List";

/// Names that are offered instead of one that is not there.
const OFFERED_MAX: usize = 3;

/// What the directory answers. Fields that this version does not know are kept in [`Directory::whole`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Directory {
    pub(crate) services: Vec<ServiceDescription>,
    pub(crate) topics: Vec<TopicDescription>,
    pub(crate) peers: Vec<Value>,
    pub(crate) node: Value,
    /// The answer as it came.
    #[serde(skip)]
    pub(crate) whole: Bytes,
}

impl Directory {
    /// Asks the node. `None` if it has no directory.
    pub(crate) async fn fetch(node: &Node) -> Outcome<Option<Self>> {
        let mut call = node.client.method(LIST).idempotent();
        if let Some(left) = node.left() {
            call = call.timeout(left);
        }
        let answer = call
            .unary::<Bytes, Bytes>(Raw, &Bytes::from_static(b"{}"))
            .await;
        let whole = match answer {
            Ok(answer) => answer.into_inner(),
            Err(error) if error.code() == ErrorCode::UNIMPLEMENTED => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let directory: Self = serde_json::from_slice(&whole).map_err(|error| {
            Failure::new(
                ErrorCode::INTERNAL,
                format!("the node's directory cannot be read: {error}"),
            )
            .hint("node and command are of different versions; compare `remus --version`")
        })?;
        Ok(Some(Self { whole, ..directory }))
    }

    /// The full names of all methods, with their kinds.
    pub(crate) fn methods(&self) -> impl Iterator<Item = (String, MethodKind)> + '_ {
        self.services.iter().flat_map(|service| {
            service
                .methods
                .iter()
                .map(|method| (format!("{}/{}", service.name, method.name), method.kind))
        })
    }

    /// The kind of the method with this full name, or an error that offers the nearest names.
    pub(crate) fn kind_of(&self, method: &str) -> Result<MethodKind, Failure> {
        if let Some((_, kind)) = self.methods().find(|(name, _)| name == method) {
            return Ok(kind);
        }
        let wanted = method.split('/').next().unwrap_or_default();
        let service = self.services.iter().find(|service| service.name == wanted);
        let failure = match service {
            None => Failure::new(
                ErrorCode::NOT_FOUND,
                format!("the node has no service `{wanted}`"),
            ),
            Some(_) => Failure::new(
                ErrorCode::NOT_FOUND,
                format!("the node has no method `{method}`"),
            ),
        };
        let offered: Vec<String> = match service {
            None => {
                let names: Vec<String> = self.methods().map(|(name, _)| name).collect();
                nearest(method, &names)
            }
            Some(service) => {
                // The service is right, so only its own methods are meant.
                let wanted = method.split('/').nth(1).unwrap_or_default();
                let names = service.methods.iter().map(|method| method.name.clone());
                let mut names: Vec<String> = names.collect();
                let near = nearest(wanted, &names);
                if !near.is_empty() {
                    names = near;
                }
                names.truncate(OFFERED_MAX);
                let full = |name: &String| format!("{}/{name}", service.name);
                names.iter().map(full).collect()
            }
        };
        Err(if offered.is_empty() {
            failure.hint("`remus ls methods` lists what there is")
        } else {
            let offered: Vec<_> = offered.iter().map(|name| format!("`{name}`")).collect();
            failure.hint(format!(
                "{}; `remus ls methods` lists all",
                offered.join(" or ")
            ))
        })
    }
}

/// Up to three of `names` that somebody who wrote `wanted` may have meant, the likeliest first.
pub(crate) fn nearest(wanted: &str, names: &[String]) -> Vec<String> {
    /// A name may differ in one of this many letters.
    const LETTERS_PER_ERROR: usize = 3;
    let wanted = wanted.to_lowercase();
    if wanted.is_empty() {
        return Vec::new();
    }
    let allowed = (wanted.chars().count() / LETTERS_PER_ERROR).max(1);
    let mut near: Vec<(usize, &String)> = names
        .iter()
        .filter_map(|name| {
            let lower = name.to_lowercase();
            // Whoever leaves package and version out means the rest exactly.
            let distance = if lower.ends_with(&format!(".{wanted}"))
                || lower.ends_with(&format!("/{wanted}"))
            {
                0
            } else {
                let last = |text: &str| text.rsplit('/').next().unwrap_or_default().to_owned();
                let whole = strsim::osa_distance(&lower, &wanted);
                // The method alone, with its service misspelled or in another version.
                let same_method = lower.contains('/') && last(&lower) == last(&wanted);
                if whole > allowed && !(same_method && whole <= allowed * 2) {
                    return None;
                }
                whole.max(1)
            };
            Some((distance, name))
        })
        .collect();
    near.sort();
    near.into_iter()
        .take(OFFERED_MAX)
        .map(|(_, name)| name.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> Directory {
        serde_json::from_value(serde_json::json!({
            "services": [
                {"name": "host.v1.Host", "id": 1, "description": "", "methods": [
                    {"name": "Info", "id": 2, "kind": "unary"},
                    {"name": "Processes", "id": 3, "kind": "server-stream"},
                ]},
                {"name": "file.v1.Files", "id": 4, "description": "", "methods": [
                    {"name": "Put", "id": 5, "kind": "client-stream"},
                ]},
            ],
            "something new": 1,
        }))
        .unwrap()
    }

    #[test]
    fn finds_the_kind_of_a_method() {
        let directory = directory();
        assert_eq!(
            directory.kind_of("host.v1.Host/Processes"),
            Ok(MethodKind::ServerStream)
        );
        assert_eq!(
            directory.kind_of("file.v1.Files/Put"),
            Ok(MethodKind::ClientStream)
        );
    }

    #[test]
    fn offers_the_nearest_names_for_one_that_is_not_there() {
        for (wanted, what, offered) in [
            (
                "host.v1.Host/Inof",
                "no method `host.v1.Host/Inof`",
                "`host.v1.Host/Info`",
            ),
            (
                "host.v1.host/info",
                "no service `host.v1.host`",
                "`host.v1.Host/Info`",
            ),
            ("Host/Info", "no service `Host`", "`host.v1.Host/Info`"),
            (
                "host.v2.Hosts/Processes",
                "no service",
                "`host.v1.Host/Processes`",
            ),
            (
                "host.v1.Host/Reboot",
                "no method",
                "`host.v1.Host/Info` or `host.v1.Host/Processes`",
            ),
            (
                "nothing/alike",
                "no service `nothing`",
                "`remus ls methods`",
            ),
        ] {
            let failure = directory().kind_of(wanted).unwrap_err();
            assert_eq!(failure.exit().code(), 4);
            let text = failure.json();
            assert!(
                text.contains(what) && text.contains(offered),
                "{wanted}: {text}"
            );
        }
    }

    #[test]
    fn offers_nothing_where_nothing_is_near() {
        let names = vec!["host.v1.Host/Info".to_owned()];
        for wanted in ["", "x", "completely.different/Thing"] {
            assert_eq!(nearest(wanted, &names), Vec::<String>::new(), "{wanted}");
        }
    }
}
