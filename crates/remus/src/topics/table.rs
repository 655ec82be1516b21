//! Which subscriptions a topic reaches: a tree of tokens, so that a publish costs what its matches cost, not what all
//! subscriptions cost.

use std::collections::HashMap;

/// A tree of patterns with values at their ends.
#[derive(Debug)]
pub(crate) struct Table<V> {
    root: Node<V>,
    len: usize,
}

#[derive(Debug)]
struct Node<V> {
    /// The tokens come from peers, so their hash is seeded.
    children: HashMap<Box<str>, Node<V>, foldhash::fast::RandomState>,
    /// `*`: any one token.
    any: Option<Box<Node<V>>>,
    /// Patterns that end here.
    here: Vec<(u64, V)>,
    /// Patterns that end here with `>`: one token or more.
    rest: Vec<(u64, V)>,
}

impl<V> Default for Node<V> {
    fn default() -> Self {
        Self {
            children: HashMap::default(),
            any: None,
            here: Vec::new(),
            rest: Vec::new(),
        }
    }
}

impl<V> Default for Table<V> {
    fn default() -> Self {
        Self {
            root: Node::default(),
            len: 0,
        }
    }
}

impl<V> Node<V> {
    fn is_empty(&self) -> bool {
        self.children.is_empty()
            && self.any.is_none()
            && self.here.is_empty()
            && self.rest.is_empty()
    }
}

impl<V> Table<V> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds a value under a pattern that was checked. `id` names it for removal.
    pub(crate) fn insert(&mut self, pattern: &str, id: u64, value: V) {
        let mut node = &mut self.root;
        let mut ends_open = false;
        for token in pattern.split('.') {
            match token {
                ">" => ends_open = true,
                "*" => node = node.any.get_or_insert_with(Box::default),
                token => node = node.children.entry(token.into()).or_default(),
            }
        }
        let list = if ends_open {
            &mut node.rest
        } else {
            &mut node.here
        };
        list.push((id, value));
        self.len = self.len.saturating_add(1);
    }

    /// Removes the value, and the nodes that nothing needs any more.
    pub(crate) fn remove(&mut self, pattern: &str, id: u64) -> Option<V> {
        let tokens: Vec<&str> = pattern.split('.').collect();
        let removed = remove(&mut self.root, &tokens, id);
        if removed.is_some() {
            self.len = self.len.saturating_sub(1);
        }
        removed
    }

    /// Calls `found` with every value whose pattern matches.
    pub(crate) fn for_each_match<'a>(&'a self, topic: &str, mut found: impl FnMut(&'a V)) {
        visit(&self.root, topic, &mut found);
    }

    pub(crate) fn for_each<'a>(&'a self, mut found: impl FnMut(&'a V)) {
        fn all<'a, V>(node: &'a Node<V>, found: &mut impl FnMut(&'a V)) {
            node.here
                .iter()
                .chain(&node.rest)
                .for_each(|(_, value)| found(value));
            node.children.values().for_each(|child| all(child, found));
            if let Some(any) = &node.any {
                all(any, found);
            }
        }
        all(&self.root, &mut found);
    }
}

/// Depth is bounded by the number of tokens in a name.
fn visit<'a, V>(node: &'a Node<V>, left: &str, found: &mut impl FnMut(&'a V)) {
    node.rest.iter().for_each(|(_, value)| found(value));
    let (token, after) = match left.split_once('.') {
        Some((token, after)) => (token, Some(after)),
        None => (left, None),
    };
    for next in [node.children.get(token), node.any.as_deref()]
        .into_iter()
        .flatten()
    {
        match after {
            Some(after) => visit(next, after, found),
            None => next.here.iter().for_each(|(_, value)| found(value)),
        }
    }
}

fn remove<V>(node: &mut Node<V>, tokens: &[&str], id: u64) -> Option<V> {
    let take = |list: &mut Vec<(u64, V)>| {
        let at = list.iter().position(|(other, _)| *other == id)?;
        Some(list.swap_remove(at).1)
    };
    match tokens {
        [] => take(&mut node.here),
        [">"] => take(&mut node.rest),
        ["*", after @ ..] => {
            let child = node.any.as_mut()?;
            let removed = remove(child, after, id);
            if child.is_empty() {
                node.any = None;
            }
            removed
        }
        [token, after @ ..] => {
            let child = node.children.get_mut(*token)?;
            let removed = remove(child, after, id);
            if child.is_empty() {
                node.children.remove(*token);
            }
            removed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The plain meaning of a pattern, token by token.
    fn matches(pattern: &str, topic: &str) -> bool {
        let (pattern, topic): (Vec<_>, Vec<_>) =
            (pattern.split('.').collect(), topic.split('.').collect());
        match pattern.split_last() {
            Some((&">", head)) => {
                topic.len() > head.len()
                    && head.iter().zip(&topic).all(|(p, t)| *p == "*" || p == t)
            }
            _ => {
                pattern.len() == topic.len()
                    && pattern.iter().zip(&topic).all(|(p, t)| *p == "*" || p == t)
            }
        }
    }

    #[test]
    fn finds_what_a_plain_comparison_finds_and_forgets_everything() {
        remus_testing::for_each_seed(200, |rng| {
            let tokens = ["a", "b", "c"];
            let mut table = Table::default();
            let mut patterns: Vec<(u64, String)> = Vec::new();
            for id in 0..40_u64 {
                let depth = 1 + rng.below(4);
                let mut parts: Vec<&str> = (0..depth)
                    .map(|_| {
                        if rng.chance(1, 4) {
                            "*"
                        } else {
                            *rng.pick(&tokens).unwrap()
                        }
                    })
                    .collect();
                if rng.chance(1, 4) {
                    parts.push(">");
                }
                let pattern = parts.join(".");
                table.insert(&pattern, id, id);
                patterns.push((id, pattern));
            }
            for _ in 0..40 {
                let topic = (0..=rng.below(5))
                    .map(|_| *rng.pick(&tokens).unwrap())
                    .collect::<Vec<_>>()
                    .join(".");
                let mut found = Vec::new();
                table.for_each_match(&topic, |id| found.push(*id));
                found.sort_unstable();
                let expected: Vec<u64> = patterns
                    .iter()
                    .filter(|(_, pattern)| matches(pattern, &topic))
                    .map(|(id, _)| *id)
                    .collect();
                assert_eq!(found, expected, "{topic}");
                if let Some((id, pattern)) = patterns.pop() {
                    assert_eq!(table.remove(&pattern, id), Some(id));
                    assert_eq!(table.remove(&pattern, id), None);
                }
            }
            for (id, pattern) in patterns {
                table.remove(&pattern, id);
            }
            assert_eq!(table.len(), 0);
            assert!(table.root.is_empty(), "no node is left behind");
        });
    }
}
