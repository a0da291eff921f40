//! What actions of the card's network namespace have counted.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use netlink::tc::{
    RTM_GETACTION, TCA_ACT_KIND, TCA_ACT_OPTIONS, TCA_ACT_STATS, TCA_ACT_TAB, TCA_GACT_PARMS, TCA_GACT_TM,
    TCA_STATS_BASIC, TCA_STATS_PKT64, TCAMSG,
};
use netlink::{Builder, find, u32_at};

use crate::socket::Socket;

/// What an action has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    pub packets: u64,
    pub bytes: u64,
    /// How long ago the last frame was, or the action was made.
    pub idle: Duration,
}

/// What each action of a kind has counted, by its index. `parms`: the attribute of the parameters of this kind.
///
/// # Errors
/// The kernel cannot be queried.
fn of_kind(socket: &mut Socket, kind: &str, parms: u16) -> io::Result<BTreeMap<u32, Counted>> {
    let body = |to: &mut Builder| {
        to.raw(&[0; TCAMSG]).nest_noflag(TCA_ACT_TAB, |to| {
            to.nest_noflag(1, |to| {
                to.text(TCA_ACT_KIND, kind);
            });
        });
    };
    let mut all = BTreeMap::new();
    socket.dump(RTM_GETACTION, body, |message| {
        let table = find(message.after(TCAMSG)?, TCA_ACT_TAB)?;
        all.extend(table.nested().flatten().filter_map(|action| read(action.value, parms)));
        None::<()>
    })?;
    Ok(all)
}

fn read(action: &[u8], parms: u16) -> Option<(u32, Counted)> {
    let options = find(action, TCA_ACT_OPTIONS)?.value;
    let index = u32_at(find(options, parms)?.value, 0)?;
    let u64_at = |bytes: &[u8], at: usize| Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
    let counted = find(action, TCA_ACT_STATS).and_then(|statistics| {
        let basic = find(statistics.value, TCA_STATS_BASIC)?.value;
        let packets = find(statistics.value, TCA_STATS_PKT64).and_then(|packets| packets.u64());
        // `struct tcf_t`, in hundredths of a second: made, used last.
        let idle = find(options, TCA_GACT_TM).and_then(|times| u64_at(times.value, 8)).unwrap_or(0);
        Some(Counted {
            packets: packets.or(u32_at(basic, 8).map(u64::from))?,
            bytes: u64_at(basic, 0)?,
            idle: Duration::from_millis(idle.saturating_mul(10)),
        })
    });
    Some((index, counted.unwrap_or_default()))
}

/// What each `gact` action has counted, by its index.
///
/// # Errors
/// The kernel cannot be queried.
pub(crate) fn gact(socket: &mut Socket) -> io::Result<BTreeMap<u32, Counted>> {
    of_kind(socket, "gact", TCA_GACT_PARMS)
}

/// The highest index of a `police` action; 0 without one.
///
/// # Errors
/// The kernel cannot be queried.
pub(crate) fn highest_police(socket: &mut Socket) -> io::Result<u32> {
    let all = of_kind(socket, "police", netlink::tc::TCA_POLICE_TBF)?;
    Ok(all.last_key_value().map_or(0, |(index, _)| *index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_is_read_with_what_it_has_counted() {
        let action = netlink::row(|to| {
            to.text(TCA_ACT_KIND, "gact");
            to.nest_noflag(TCA_ACT_STATS, |to| {
                to.put(TCA_STATS_BASIC, &[&98_000_u64.to_ne_bytes()[..], &[0; 8]].concat());
                to.u64(TCA_STATS_PKT64, 1_000);
            });
            to.nest_noflag(TCA_ACT_OPTIONS, |to| {
                to.put(TCA_GACT_PARMS, [7_u32, 0, 3, 1, 1].map(u32::to_ne_bytes).as_flattened());
                to.put(TCA_GACT_TM, [500_u64, 25, 0, 500].map(u64::to_ne_bytes).as_flattened());
            });
        });
        let counted = Counted { packets: 1_000, bytes: 98_000, idle: Duration::from_millis(250) };
        assert_eq!(read(&action.unwrap(), TCA_GACT_PARMS), Some((7, counted)));
    }
}
