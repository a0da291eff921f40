//! The clients of a control socket, and how many of them each user may have.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lockdep::{Locked, Mutex, Unlocked, lock_classes};
use rustix::net::{self, Shutdown};

use crate::peer::Peer;

lock_classes! {
    /// The connected clients.
    pub leaf ClientsClass = "clients of the control socket";
}

/// A client.
pub(crate) struct ServedClient {
    pub socket: OwnedFd,
    pub peer: Peer,
    /// The user ID of the process that connected.
    pub user: u32,
}

/// The connected clients, by number.
pub(crate) struct Clients(Mutex<ClientsClass, BTreeMap<u64, Arc<ServedClient>>>);

impl Clients {
    /// No clients.
    pub fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    /// Adds a client, if its user may have one more of the `places`. Returns whether it was added. `own`: the user ID
    /// of this process.
    pub fn admit(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        number: u64,
        client: &Arc<ServedClient>,
        places: usize,
        own: u32,
    ) -> bool {
        let mut clients = self.0.lock_leaf(cx);
        let connected = clients.values().map(|client| client.user);
        let admitted = Places::of(places).has_one(client.user, own, connected);
        if admitted {
            clients.insert(number, Arc::clone(client));
        }
        admitted
    }

    /// Removes a client, which gives its place back.
    pub fn remove(&self, cx: &mut Locked<'_, Unlocked>, number: u64) {
        self.0.lock_leaf(cx).remove(&number);
    }

    /// Ends every connection: its thread reads no more requests, and its peer no more answers.
    pub fn shut_down(&self, cx: &mut Locked<'_, Unlocked>) {
        for client in self.0.lock_leaf(cx).values() {
            let _ = net::shutdown(&client.socket, Shutdown::Both);
        }
    }

    /// The clients that have joined devlink's multicast group.
    pub fn joined(&self, cx: &mut Locked<'_, Unlocked>) -> Vec<Arc<ServedClient>> {
        self.joined_by(cx, |peer| &peer.joined)
    }

    /// The clients that have joined a multicast group, by the mark that says so.
    pub fn joined_by(&self, cx: &mut Locked<'_, Unlocked>, mark: fn(&Peer) -> &AtomicBool) -> Vec<Arc<ServedClient>> {
        let clients = self.0.lock_leaf(cx);
        clients.values().filter(|client| mark(&client.peer).load(Ordering::Relaxed)).cloned().collect()
    }
}

/// The shares of users in the places of a control socket. No user can keep root or the daemon's user from connecting,
/// and no other user can keep another from connecting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Places {
    all: usize,
    /// For all users other than root and the daemon's user.
    others: usize,
    /// For each of these other users.
    each: usize,
    /// Reserved for root and the daemon's user. Each of the two leaves half of these to the other.
    reserved: usize,
}

impl Places {
    /// A quarter is reserved for root and the daemon's user. Each other user may have a quarter of the rest.
    fn of(all: usize) -> Self {
        let reserved = all.div_ceil(4);
        let others = all - reserved;
        Self { all, others, each: others.div_ceil(4), reserved }
    }

    /// Whether a user may have one more place when these users are connected, each as often as it has connections.
    /// `own`: the daemon's user.
    fn has_one(self, user: u32, own: u32, connected: impl Iterator<Item = u32> + Clone) -> bool {
        const ROOT: u32 = 0;
        let is_privileged = |user: &u32| *user == ROOT || *user == own;
        let of_user = connected.clone().filter(|other| *other == user).count();
        let all = connected.clone().count();
        if !is_privileged(&user) {
            let others = connected.filter(|user| !is_privileged(user)).count();
            return all < self.all && others < self.others && of_user < self.each;
        }
        // Neither root nor the daemon's user takes the last places from the other.
        let of_the_other = connected.filter(|other| is_privileged(other) && *other != user).count();
        let left = if own == ROOT { 0 } else { (self.reserved / 2).saturating_sub(of_the_other) };
        all + left < self.all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: u32 = 0;
    const OWN: u32 = 1_000;

    /// The number of further places that a user gets when these users are connected.
    fn further_places(all: usize, user: u32, own: u32, connected: &[u32]) -> usize {
        let mut connected = connected.to_vec();
        let before = connected.len();
        while Places::of(all).has_one(user, own, connected.iter().copied()) {
            connected.push(user);
        }
        connected.len() - before
    }

    #[test]
    fn no_user_keeps_another_from_connecting() {
        for all in [8, 16, 100, 1_024] {
            let mut connected = Vec::new();
            for user in 2_000..2_010 {
                let own = further_places(all, user, OWN, &connected);
                assert!(own <= all / 4, "{own} of {all}");
                connected.extend(std::iter::repeat_n(user, own));
            }
            assert!(connected.len() >= all / 2, "they get what is not reserved");
            for user in [ROOT, OWN] {
                let privileged = further_places(all, user, OWN, &connected);
                assert!(privileged >= 1, "{user} gets none of {all}");
                let both = [&connected[..], &vec![user; privileged]].concat();
                assert!(further_places(all, ROOT + OWN - user, OWN, &both) >= 1, "{user} leaves none of {all}");
            }
        }
    }

    #[test]
    fn root_alone_gets_all_places() {
        assert_eq!(further_places(100, ROOT, ROOT, &[]), 100);
        assert_eq!(further_places(100, OWN, ROOT, &[ROOT; 100]), 0);
    }
}
