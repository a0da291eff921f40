//! The states of a TCP connection, after `net/netfilter/nf_conntrack_proto_tcp.c`.
//!
//! The transitions and time-outs are those of Linux 6.18, with nf_conntrack_tcp_loose = 1, so that a connection can be
//! picked up in its middle. Simpler than there: windows and sequence numbers are not checked, as act_ct does not check
//! those of a connection that it has offloaded; so the time-outs for unacknowledged data and for retransmissions do not
//! exist.

use std::time::Duration;

use super::Direction;
use crate::parse::{Dissected, be32, protocol};

/// A state of `enum tcp_conntrack`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TcpPhase {
    /// Before the first frame.
    #[default]
    None,
    /// A SYN was seen.
    SynSent,
    /// A SYN and ACK was seen.
    SynRecv,
    /// An ACK was seen.
    Established,
    /// A FIN was seen.
    FinWait,
    /// An ACK was seen after the FIN.
    CloseWait,
    /// A FIN was seen in the other direction.
    LastAck,
    /// The last ACK was seen.
    TimeWait,
    /// A RST was seen.
    Close,
    /// A SYN was seen in both directions.
    SynSent2,
}

impl TcpPhase {
    /// How long a connection lives in this state without a frame (`tcp_timeouts`).
    fn timeout(self) -> Duration {
        Duration::from_secs(match self {
            TcpPhase::None | TcpPhase::Close => 10,
            TcpPhase::SynSent | TcpPhase::FinWait | TcpPhase::TimeWait | TcpPhase::SynSent2 => 2 * 60,
            TcpPhase::SynRecv | TcpPhase::CloseWait => 60,
            TcpPhase::Established => 5 * 24 * 60 * 60,
            TcpPhase::LastAck => 30,
        })
    }
}

/// How long a connection that was picked up in its middle lives without a reply (TCP_CONNTRACK_UNACK).
const PICKED_UP: Duration = Duration::from_secs(5 * 60);

/// What kind of segment it is (`get_conntrack_index`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Syn,
    SynAck,
    Fin,
    Ack,
    Rst,
}

/// A TCP header, as far as it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Segment {
    kind: Kind,
    acknowledged: u32,
    /// The sequence number behind the last byte.
    end: u32,
}

/// The header of a TCP frame, unless it is truncated or its flags make no sense (`tcp_error`, `tcp_valid_flags`).
pub(super) fn segment(frame: &[u8], dissected: &Dissected) -> Option<Segment> {
    const FIN: u8 = 1;
    const SYN: u8 = 2;
    const RST: u8 = 4;
    const ACK: u8 = 16;
    const URG: u8 = 32;
    let network = dissected.network.filter(|network| network.protocol == protocol::TCP)?;
    let header = frame.get(network.payload..network.end)?;
    let data = usize::from(header.get(12)? >> 4) * 4;
    if data < 20 || header.len() < data {
        return None;
    }
    let (kind, ends) = match header[13] & (FIN | SYN | RST | ACK | URG) {
        SYN | 0b100010 => (Kind::Syn, 1),
        0b010010 => (Kind::SynAck, 1),
        RST | 0b010100 => (Kind::Rst, 0),
        0b010001 | 0b110001 => (Kind::Fin, 1),
        ACK | 0b110000 => (Kind::Ack, 0),
        _ => return None,
    };
    let end = be32(header, 4)?.wrapping_add((header.len() - data) as u32).wrapping_add(ends);
    Some(Segment { kind, acknowledged: be32(header, 8)?, end })
}

/// What a segment does in a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Next {
    To(TcpPhase),
    Ignore,
    Invalid,
}

/// The table `tcp_conntracks`.
fn next(direction: Direction, kind: Kind, phase: TcpPhase) -> Next {
    use Direction::{Original, Reply};
    use TcpPhase::{Close, CloseWait, Established, FinWait, LastAck, None, SynRecv, SynSent, SynSent2, TimeWait};
    match (direction, kind, phase) {
        (Original, Kind::Syn, None | SynSent | TimeWait | Close) => Next::To(SynSent),
        (_, Kind::Syn, SynSent2) | (Reply, Kind::Syn, SynSent) => Next::To(SynSent2),
        (Original, Kind::Syn, _) => Next::Ignore,
        (Reply, Kind::Syn, TimeWait) => Next::To(SynSent),
        (Reply, Kind::Syn, _) => Next::Invalid,

        (Original, Kind::SynAck, SynRecv) | (_, Kind::SynAck, SynSent2) => Next::To(SynRecv),
        (Original, Kind::SynAck, _) | (Reply, Kind::SynAck, None) => Next::Invalid,
        (Reply, Kind::SynAck, SynSent) => Next::To(SynRecv),
        (Reply, Kind::SynAck, _) => Next::Ignore,

        (_, Kind::Fin, None | SynSent | SynSent2) => Next::Invalid,
        (_, Kind::Fin, SynRecv | Established) => Next::To(FinWait),
        (_, Kind::Fin, FinWait | CloseWait | LastAck) => Next::To(LastAck),
        (_, Kind::Fin, TimeWait | Close) => Next::To(phase),

        (Original, Kind::Ack, None | SynRecv) => Next::To(Established),
        (Original, Kind::Ack, SynSent | SynSent2) | (Reply, Kind::Ack, None) => Next::Invalid,
        (Reply, Kind::Ack, SynSent | SynSent2) => Next::Ignore,
        (Reply, Kind::Ack, SynRecv) => Next::To(SynRecv),
        (_, Kind::Ack, FinWait) => Next::To(CloseWait),
        (_, Kind::Ack, LastAck) => Next::To(TimeWait),
        (_, Kind::Ack, Established | CloseWait | TimeWait | Close) => Next::To(phase),

        (_, Kind::Rst, None) => Next::Invalid,
        (_, Kind::Rst, _) => Next::To(Close),
    }
}

/// The state of a TCP connection (`struct ip_ct_tcp`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct TcpState {
    /// The phase.
    pub phase: TcpPhase,
    last: Option<(Kind, Direction)>,
    last_end: u32,
    /// Whether a FIN began to close the connection (IP_CT_TCP_FLAG_CLOSE_INIT).
    closing: bool,
    /// Whether a SYN has come from both sides (IP_CT_TCP_SIMULTANEOUS_OPEN).
    simultaneous: bool,
    /// Whether an ACK may answer a SYN that was ignored, and not a FIN (IP_CT_EXP_CHALLENGE_ACK).
    challenge: bool,
}

/// What a segment did.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TcpUpdate {
    Invalid,
    /// It may be right or wrong, and changes nothing but what the next one means.
    Ignored,
    /// It ends the connection at once: a RST before any reply.
    Killed,
    /// It begins another connection.
    Reopened,
    Accepted {
        /// The new time-out, if there is one.
        timeout: Option<Duration>,
        assured: bool,
    },
}

impl TcpState {
    /// Takes note of a segment (`nf_conntrack_tcp_packet`).
    pub(super) fn update(
        &mut self,
        direction: Direction,
        segment: &Segment,
        seen_reply: bool,
        assured: bool,
    ) -> TcpUpdate {
        let (old, new) = match next(direction, segment.kind, self.phase) {
            Next::Invalid => return TcpUpdate::Invalid,
            Next::To(TcpPhase::SynSent) if self.phase >= TcpPhase::TimeWait && self.may_reopen(direction) => {
                return TcpUpdate::Reopened;
            }
            Next::To(TcpPhase::SynSent) if self.phase >= TcpPhase::TimeWait => return self.ignore(direction, segment),
            Next::Ignore if self.answers_ignored_syn(direction, segment) => {
                // What was known of both sides is void.
                (self.closing, self.challenge) = (false, false);
                (TcpPhase::SynSent, TcpPhase::SynRecv)
            }
            Next::Ignore => return self.ignore(direction, segment),
            Next::To(TcpPhase::SynRecv) if self.completes_simultaneous(direction, segment) => {
                (self.phase, TcpPhase::Established)
            }
            Next::To(TcpPhase::TimeWait) if self.is_challenge(direction, segment) => {
                self.challenge = false;
                return TcpUpdate::Ignored;
            }
            Next::To(new) => (self.phase, new),
        };
        self.simultaneous |= new == TcpPhase::SynSent2;
        self.last = Some((segment.kind, direction));
        self.closing |= old != new && new == TcpPhase::FinWait;
        self.phase = new;
        if !seen_reply && segment.kind == Kind::Rst {
            return TcpUpdate::Killed;
        }
        let resent_syn = !seen_reply && segment.kind == Kind::Syn && old == TcpPhase::SynSent;
        let agreed = [TcpPhase::SynRecv, TcpPhase::Established].contains(&old) && new == TcpPhase::Established;
        TcpUpdate::Accepted {
            timeout: (!resent_syn).then(|| self.timeout(seen_reply)),
            assured: assured || seen_reply && agreed,
        }
    }

    fn timeout(&self, seen_reply: bool) -> Duration {
        match self.phase {
            TcpPhase::Established if !seen_reply => PICKED_UP,
            phase => phase.timeout(),
        }
    }

    /// Whether a SYN may begin anew: after an orderly close, or after a RST of the same side.
    fn may_reopen(&self, direction: Direction) -> bool {
        self.closing || self.last == Some((Kind::Rst, direction))
    }

    /// Whether a SYN and ACK answers a SYN that was ignored, so that both sides know better than the card.
    fn answers_ignored_syn(&self, direction: Direction, segment: &Segment) -> bool {
        segment.kind == Kind::SynAck
            && self.last == Some((Kind::Syn, direction.opposite()))
            && segment.acknowledged == self.last_end
    }

    fn completes_simultaneous(&self, direction: Direction, segment: &Segment) -> bool {
        self.simultaneous && direction == Direction::Reply && segment.kind == Kind::Ack
    }

    /// Whether an ACK answers a SYN that was ignored while the last FIN was not acknowledged (RFC 5961).
    fn is_challenge(&self, direction: Direction, segment: &Segment) -> bool {
        self.challenge
            && self.phase == TcpPhase::LastAck
            && segment.kind == Kind::Ack
            && self.last == Some((Kind::Syn, direction.opposite()))
    }

    fn ignore(&mut self, direction: Direction, segment: &Segment) -> TcpUpdate {
        self.last = Some((segment.kind, direction));
        self.last_end = segment.end;
        if segment.kind == Kind::Syn && direction == Direction::Original {
            self.simultaneous = false;
            self.challenge = self.phase == TcpPhase::LastAck;
        }
        TcpUpdate::Ignored
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{Original, Reply};

    fn segment_of(kind: Kind) -> Segment {
        Segment { kind, acknowledged: 0, end: 7 }
    }

    /// Sends the segments one after the other, and returns the phases.
    fn phases(segments: &[(Direction, Kind)]) -> Vec<TcpPhase> {
        let (mut state, mut seen_reply) = (TcpState::default(), false);
        let step = |(direction, kind): &(Direction, Kind)| {
            state.update(*direction, &segment_of(*kind), seen_reply, false);
            seen_reply |= *direction == Reply;
            state.phase
        };
        segments.iter().map(step).collect()
    }

    #[test]
    fn a_connection_opens_and_closes() {
        use TcpPhase::{CloseWait, Established, FinWait, LastAck, SynRecv, SynSent, TimeWait};
        let segments = [
            (Original, Kind::Syn),
            (Reply, Kind::SynAck),
            (Original, Kind::Ack),
            (Original, Kind::Fin),
            (Reply, Kind::Ack),
            (Reply, Kind::Fin),
            (Original, Kind::Ack),
        ];
        let expected = [SynSent, SynRecv, Established, FinWait, CloseWait, LastAck, TimeWait];
        assert_eq!(phases(&segments), expected);
    }

    #[test]
    fn two_syns_at_once_open_a_connection() {
        use TcpPhase::{Established, SynRecv, SynSent, SynSent2};
        let segments = [(Original, Kind::Syn), (Reply, Kind::Syn), (Original, Kind::SynAck), (Reply, Kind::Ack)];
        assert_eq!(phases(&segments), [SynSent, SynSent2, SynRecv, Established]);
    }

    #[test]
    fn a_first_reset_kills_and_a_later_one_closes() {
        let mut state = TcpState::default();
        state.update(Original, &segment_of(Kind::Syn), false, false);
        assert_eq!(state.update(Reply, &segment_of(Kind::Rst), false, false), TcpUpdate::Killed);
        assert_eq!(phases(&[(Original, Kind::Ack), (Reply, Kind::Ack), (Reply, Kind::Rst)])[2], TcpPhase::Close);
    }

    #[test]
    fn a_syn_reopens_what_was_closed() {
        let mut state = TcpState { phase: TcpPhase::TimeWait, closing: true, ..TcpState::default() };
        assert_eq!(state.update(Original, &segment_of(Kind::Syn), true, true), TcpUpdate::Reopened);
        let mut state = TcpState { phase: TcpPhase::Established, ..TcpState::default() };
        assert_eq!(state.update(Original, &segment_of(Kind::Syn), true, true), TcpUpdate::Ignored);
        let answer = Segment { kind: Kind::SynAck, acknowledged: 7, end: 0 };
        state.update(Reply, &answer, true, true);
        assert_eq!(state.phase, TcpPhase::SynRecv);
    }

    #[test]
    fn an_ignored_syn_makes_the_next_ack_a_challenge() {
        let last_ack = TcpState { phase: TcpPhase::LastAck, closing: true, ..TcpState::default() };
        let mut state = last_ack;
        assert_eq!(state.update(Original, &segment_of(Kind::Syn), true, true), TcpUpdate::Ignored);
        assert_eq!(state.update(Reply, &segment_of(Kind::Ack), true, true), TcpUpdate::Ignored);
        assert_eq!(state.phase, TcpPhase::LastAck);
        // The next one is an ACK of the FIN.
        state.update(Reply, &segment_of(Kind::Ack), true, true);
        assert_eq!(state.phase, TcpPhase::TimeWait);
        // A SYN of both sides is forgotten with an ignored one, and a FIN with its answer.
        let mut state = TcpState { simultaneous: true, phase: TcpPhase::SynRecv, ..last_ack };
        state.update(Original, &segment_of(Kind::Syn), true, false);
        state.update(Reply, &Segment { kind: Kind::SynAck, acknowledged: 7, end: 0 }, true, false);
        state.update(Reply, &segment_of(Kind::Ack), true, false);
        assert_eq!((state.phase, state.closing), (TcpPhase::SynRecv, false));
    }

    /// The whole table of the kernel: a row for each direction and kind, a column for each phase.
    ///
    /// The letters are those of the phases from N (none) over S, R, E, F, C, L, T, X (close) to 2; `-` is ignored and
    /// `!` is invalid.
    #[test]
    fn every_transition_is_the_kernels() {
        const PHASES: &str = "NSREFCLTX2";
        let table = [
            (Original, Kind::Syn, "SS-----SS2"),
            (Original, Kind::SynAck, "!!R!!!!!!R"),
            (Original, Kind::Fin, "!!FFLLLTX!"),
            (Original, Kind::Ack, "E!EECCTTX!"),
            (Original, Kind::Rst, "!XXXXXXXXX"),
            (Reply, Kind::Syn, "!2!!!!!S!2"),
            (Reply, Kind::SynAck, "!R-------R"),
            (Reply, Kind::Fin, "!!FFLLLTX!"),
            (Reply, Kind::Ack, "!-RECCTTX-"),
            (Reply, Kind::Rst, "!XXXXXXXXX"),
        ];
        let all = [
            TcpPhase::None,
            TcpPhase::SynSent,
            TcpPhase::SynRecv,
            TcpPhase::Established,
            TcpPhase::FinWait,
            TcpPhase::CloseWait,
            TcpPhase::LastAck,
            TcpPhase::TimeWait,
            TcpPhase::Close,
            TcpPhase::SynSent2,
        ];
        for (direction, kind, row) in table {
            for (phase, letter) in all.into_iter().zip(row.chars()) {
                let expected = match (letter, PHASES.find(letter)) {
                    ('-', _) => Next::Ignore,
                    (_, Some(place)) => Next::To(all[place]),
                    _ => Next::Invalid,
                };
                assert_eq!(next(direction, kind, phase), expected, "{direction:?} {kind:?} in {phase:?}");
            }
        }
    }
}
