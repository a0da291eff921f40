//! Orders of locks, combined: one schedule may take two locks in one order, and a schedule of another worker, part
//! or program may take them in the other.
//!
//! The checker of each worker has a graph of its own. This module combines what each of them has learned, with the
//! schedules that showed it, and finds cycles that none of them could see.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::program::Program;
use crate::report::{Report, Violation, replay};
use crate::story::Story;
use crate::token::Token;

/// The orders of locks that one schedule was the first to show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownOrders {
    /// The token that runs the schedule again.
    pub token: String,
    /// Pairs of lock classes: one that was held, and one that was waited for meanwhile.
    pub orders: Vec<(String, String)>,
}

/// The graph of all orders that schedules have shown, each with the token of one such schedule. It has no cycle: an
/// order that would close one is not added.
#[derive(Clone, Debug, Default)]
pub struct Orders {
    /// By the class that was held: the classes that were waited for, and the schedule's token.
    after: BTreeMap<String, BTreeMap<String, String>>,
}

/// Locks that several schedules take in contradictory orders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inversion {
    detail: String,
    /// The tokens of all schedules that are needed. The last one inverts the orders of the others.
    token: String,
}

impl Orders {
    /// Adds what schedules have shown. Returns the orders that are new, and the first inversion.
    pub(crate) fn add(
        &mut self,
        shown: impl IntoIterator<Item = ShownOrders>,
    ) -> (Vec<ShownOrders>, Option<Inversion>) {
        let (mut new, mut inversion) = (Vec::new(), None);
        for ShownOrders { token, mut orders } in shown {
            orders.retain(|(outer, inner)| {
                if self.after.get(outer).is_some_and(|after| after.contains_key(inner)) {
                    return false;
                }
                if let Some(path) = self.path(inner, outer) {
                    inversion.get_or_insert_with(|| Inversion::new(&path, (outer, inner, &token)));
                    return false;
                }
                self.after.entry(outer.clone()).or_default().insert(inner.clone(), token.clone());
                true
            });
            if !orders.is_empty() {
                new.push(ShownOrders { token, orders });
            }
        }
        (new, inversion)
    }

    /// Returns the shortest chain of orders from one class to another, as outer class, inner class and token.
    fn path<'a>(&'a self, from: &'a str, to: &str) -> Option<Vec<(&'a str, &'a str, &'a str)>> {
        let mut came: BTreeMap<&str, Option<(&str, &str)>> = BTreeMap::from([(from, None)]);
        let mut queue = VecDeque::from([from]);
        while let Some(at) = queue.pop_front() {
            if at == to {
                let mut path = Vec::new();
                let mut step = at;
                while let Some((before, token)) = came[step] {
                    path.push((before, step, token));
                    step = before;
                }
                path.reverse();
                return Some(path);
            }
            for (next, token) in self.after.get(at).into_iter().flatten() {
                came.entry(next).or_insert_with(|| {
                    queue.push_back(next);
                    Some((at, token))
                });
            }
        }
        None
    }
}

impl Inversion {
    fn new(path: &[(&str, &str, &str)], closing: (&str, &str, &str)) -> Self {
        let program = |token: &str| token.parse::<Token>().map_or_else(|_| "?".to_owned(), |token| token.program);
        let edges = || path.iter().copied().chain([closing]);
        let orders: Vec<String> = edges()
            .map(|(outer, inner, token)| format!("{outer}, then {inner} in a schedule of `{}`", program(token)))
            .collect();
        let mut tokens: Vec<&str> = Vec::new();
        for (_, _, token) in edges() {
            // Each token once, and the one that inverts the others last.
            tokens.retain(|known| *known != token);
            tokens.push(token);
        }
        let detail = format!("possible circular locking dependency between schedules: {}", orders.join("; "));
        Self { detail, token: tokens.join("+") }
    }

    /// Makes a violation, with its story if the programs are given.
    pub(crate) fn violation<P: Program>(self, among: &[P]) -> Violation {
        let told = self.token.parse::<Token>().and_then(|token| replay(among, "", &token));
        self.told(told.ok())
    }

    /// Makes a violation, with the story if the story shows it.
    pub(crate) fn told(self, story: Option<Story>) -> Violation {
        let story = story.filter(|story| story.invariant == "lock-order").unwrap_or_default();
        let detail = if story.detail.is_empty() { self.detail } else { story.detail.clone() };
        Violation { invariant: "lock-order".to_owned(), detail, token: self.token, found_by: None, story }
    }
}

impl Report {
    /// Adds the orders of locks that this program has shown. If they contradict those of others, this becomes a
    /// violation of this program. `among`: the programs that are needed to run its story.
    pub fn compare<P: Program>(&mut self, orders: &mut Orders, among: &[P]) {
        let (_, inversion) = orders.add(self.lock_orders.iter().cloned());
        self.violations.extend(inversion.map(|inversion| inversion.violation(among)));
    }

    /// Does the same without the programs: the violation has a token and no story.
    pub(crate) fn compare_untold(&mut self, orders: &mut Orders) {
        let (_, inversion) = orders.add(self.lock_orders.iter().cloned());
        self.violations.extend(inversion.map(|inversion| inversion.told(None)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(token: &str, orders: &[(&str, &str)]) -> ShownOrders {
        let orders = orders.iter().map(|(outer, inner)| ((*outer).to_owned(), (*inner).to_owned())).collect();
        ShownOrders { token: token.to_owned(), orders }
    }

    #[test]
    fn what_is_known_is_not_kept_twice() {
        let mut orders = Orders::default();
        let first = shown("t1", &[("a", "b"), ("b", "c")]);
        assert_eq!(orders.add([first.clone()]), (vec![first], None));
        let second = [shown("t2", &[("b", "c")]), shown("t3", &[("a", "b"), ("a", "d")])];
        assert_eq!(orders.add(second), (vec![shown("t3", &[("a", "d")])], None));
    }

    #[test]
    fn a_cycle_is_found_by_its_shortest_chain_and_not_taken_in() {
        let mut orders = Orders::default();
        let long = [("a", "b"), ("b", "c"), ("c", "d")];
        let (_, none) = orders.add([shown("long", &long), shown("x", &[("d", "e")]), shown("short", &[("a", "c")])]);
        assert_eq!(none, None);
        let (new, inversion) = orders.add([shown("last", &[("e", "f"), ("e", "a")])]);
        assert_eq!(new, [shown("last", &[("e", "f")])]);
        // Each schedule once, and the one that closes the cycle last.
        assert_eq!(inversion.expect("a cycle").token, "short+long+x+last");
        // The graph is unchanged: the same cycle is found again, and no other.
        assert!(orders.add([shown("again", &[("e", "a")])]).1.is_some());
        assert_eq!(orders.add([shown("other", &[("a", "e")])]).1, None);
    }

    #[test]
    fn one_schedule_may_show_more_than_one_order_of_a_cycle() {
        let mut orders = Orders::default();
        orders.add([shown("one", &[("a", "b")]), shown("two", &[("b", "c")])]);
        let (_, inversion) = orders.add([shown("one", &[("c", "a")])]);
        assert_eq!(inversion.expect("a cycle").token, "two+one");
    }
}
