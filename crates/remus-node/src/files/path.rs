//! Names of stored files, as clients give them.
//!
//! Invariant: a [`FilePath`] is one or more ordinary names joined by `/`, with nothing in it that means "up", "here", "from the
//! root" or "another drive" on any system, and does not begin with the directory where uploads wait.

use std::fmt;
use std::path::Path;

use remus::Error;

/// Where uploads wait until they are whole: a directory in the root, so that finishing one is a rename within a file system.
pub(super) const UPLOADS: &str = ".uploads";

/// Bytes of a whole path. More would not fit into a message's metadata with room to spare, or into `PATH_MAX` on some systems.
const LENGTH_MAX: usize = 1024;

/// Bytes of one name: what common file systems take.
const NAME_MAX: usize = 255;

/// Names in a path, so that no client makes a tree that nobody can walk.
const DEPTH_MAX: usize = 32;

/// The path of a file or directory below the root, checked.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct FilePath(String);

impl FilePath {
    /// Takes `text` as a path below the root. One trailing `/` is allowed.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let refuse = |why: &str| Err(refused(text, why));
        let trimmed = text.strip_suffix('/').unwrap_or(text);
        if trimmed.is_empty() {
            return refuse("it is empty");
        }
        if trimmed.len() > LENGTH_MAX {
            return refuse("it is over 1,024 bytes long");
        }
        if trimmed.starts_with('/') {
            return refuse("it begins with `/`; paths are relative to the node's files");
        }
        for (depth, name) in trimmed.split('/').enumerate() {
            if depth >= DEPTH_MAX {
                return refuse("it has over 32 levels");
            }
            if let Some(why) = problem(name) {
                return refuse(why);
            }
        }
        if trimmed.split('/').next() == Some(UPLOADS) {
            return refuse("`.uploads` belongs to the node");
        }
        Ok(Self(trimmed.to_owned()))
    }

    pub(super) fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// The directories that the path goes through, from the innermost to the outermost.
    pub(super) fn parents(&self) -> impl Iterator<Item = &Path> {
        let above = self.as_path().ancestors().skip(1);
        above.filter(|path| !path.as_os_str().is_empty())
    }
}

/// What is wrong with one name of a path.
fn problem(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("it has an empty name in it")
    } else if name == "." || name == ".." {
        Some("`.` and `..` are not allowed")
    } else if name.len() > NAME_MAX {
        Some("it has a name of over 255 bytes")
    } else if name.chars().any(char::is_control) {
        Some("it has a control character in it")
    } else if name.contains(['\\', ':']) {
        // Both separate paths on some systems.
        Some("`\\` and `:` are not allowed")
    } else {
        None
    }
}

fn refused(text: &str, why: &str) -> Error {
    /// Letters of a refused path that are repeated in the error.
    const SHOWN_MAX: usize = 80;
    let shown: String = text.chars().take(SHOWN_MAX).collect();
    let more = if shown.len() < text.len() { "…" } else { "" };
    Error::invalid_argument(format!("the path {shown:?}{more} is refused: {why}"))
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use remus::ErrorCode;

    use super::*;

    #[test]
    fn ordinary_paths_are_taken_as_they_are() {
        for text in [
            "a",
            "a/b/c.txt",
            "…/ü",
            ".hidden",
            "a..b",
            "...",
            "a/.uploads",
            "-rf",
            " ",
        ] {
            assert_eq!(FilePath::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(FilePath::parse("a/b/").unwrap().to_string(), "a/b");
        let deep = ["d"; DEPTH_MAX].join("/");
        assert!(FilePath::parse(&deep).is_ok());
        assert!(FilePath::parse(&"n".repeat(NAME_MAX)).is_ok());
    }

    #[test]
    fn what_could_lead_elsewhere_is_refused() {
        for text in [
            "",
            "/",
            "//",
            "/etc/passwd",
            "..",
            "../x",
            "a/../../x",
            "a/..",
            ".",
            "./a",
            "a/./b",
            "a//b",
            "a\0b",
            "a\nb",
            "a\u{85}b",
            "..\\x",
            "a\\b",
            "C:",
            "C:/x",
            "a:stream",
            ".uploads",
            ".uploads/1",
            ".uploads/",
        ] {
            let error = FilePath::parse(text).unwrap_err();
            assert_eq!(error.code(), ErrorCode::INVALID_ARGUMENT, "{text:?}");
        }
    }

    #[test]
    fn length_and_depth_are_limited_and_the_error_stays_short() {
        for text in [
            "n".repeat(NAME_MAX + 1),
            ["d"; DEPTH_MAX + 1].join("/"),
            ["name"; 300].join("/"),
            "../".repeat(100_000),
        ] {
            let error = FilePath::parse(&text).unwrap_err();
            assert!(error.message().len() < 300, "{}", error.message());
        }
    }

    #[test]
    fn parents_go_from_the_inside_out() {
        let path = FilePath::parse("a/b/c").unwrap();
        let parents: Vec<_> = path.parents().collect();
        assert_eq!(parents, [Path::new("a/b"), Path::new("a")]);
        assert_eq!(FilePath::parse("a").unwrap().parents().count(), 0);
    }
}
