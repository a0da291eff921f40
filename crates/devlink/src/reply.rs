//! The messages that answer a request, and where they go.

use std::os::fd::OwnedFd;

use eswitch::Touched;
use lockdep::{Locked, Unlocked};
use netlink::{BuildError, Builder, Datagram, ExtAck, Flags, Header, NLMSG_MIN_TYPE};

use crate::eswitch_family::{FILTER, FILTER_EVENT};
use crate::family::{ESWITCH, VERSION};
use crate::refusal::Refusal;

/// A dump is sent in datagrams of at most this many bytes. A single message that is longer is a datagram of its own.
const DATAGRAM: usize = 16 * 1024;

/// Takes the answers to requests.
pub trait Sink {
    /// Takes a datagram.
    fn send(&mut self, datagram: &[u8]);

    /// Takes a descriptor that is to go with the next datagram.
    fn attach(&mut self, _file: OwnedFd) {}

    /// The descriptor that came with the request, if one did.
    fn received(&mut self) -> Option<OwnedFd> {
        None
    }

    /// Takes the notifications that a request has caused, before the request is answered.
    fn notify(&mut self, _cx: &mut Locked<'_, Unlocked>, _notices: &Datagram) {}

    /// Takes the notifications of filters that a request has changed, before the request is answered.
    fn notify_of_filters(&mut self, _cx: &mut Locked<'_, Unlocked>, _notices: &[Datagram]) {}

    /// Is called when a request has been carried out, before it is answered. The request may have changed `touched`.
    fn done(&mut self, cx: &mut Locked<'_, Unlocked>, touched: Touched);

    /// Whether the program has disconnected. Its commands are carried out nevertheless; its dumps are not made.
    fn is_gone(&self) -> bool {
        false
    }
}

/// Writes the messages that answer one request.
pub(crate) struct ReplyWriter<'a> {
    header: Header,
    /// The datagram that is being filled.
    datagram: &'a mut Datagram,
    /// Why the first message that could not be added could not be built.
    failed: Option<BuildError>,
    /// The message that the acknowledgement of success has.
    warning: Option<&'static str>,
    /// Whether the answer is a list that NLMSG_DONE ends, though the request is no dump.
    is_list: bool,
    /// The notifications that the request causes if it succeeds.
    notices: Datagram,
    /// Those of filters.
    filters: Vec<Datagram>,
    sink: &'a mut dyn Sink,
}

impl<'a> ReplyWriter<'a> {
    /// A reply to the request with this header, in an empty datagram.
    pub(crate) fn new(header: Header, datagram: &'a mut Datagram, sink: &'a mut dyn Sink) -> Self {
        let (notices, filters) = (Datagram::default(), Vec::new());
        Self { header, datagram, failed: None, warning: None, is_list: false, notices, filters, sink }
    }

    /// Adds a generic netlink message of the request's family. If it cannot be built, the request is answered with an
    /// error.
    pub fn add(&mut self, command: u8, fill: impl FnOnce(&mut Builder)) {
        if self.datagram.len() >= DATAGRAM {
            self.flush();
        }
        let flags = if self.header.is_dump() || self.is_list { Flags::MULTI } else { Flags::empty() };
        let header = Header::new(self.header.kind, flags, self.header.sequence, self.header.port);
        let added = self.datagram.message(header, |to| {
            to.genl(command, VERSION);
            fill(to);
        });
        self.failed = self.failed.or(added.err());
    }

    /// Makes a list of the answer, as some commands of devlink do although they are no dumps: its messages have NLM_F_MULTI,
    /// and NLMSG_DONE ends it. A request with NLM_F_ACK gets the acknowledgement in place of that here, and a lab adds it.
    pub fn begin_list(&mut self) {
        self.is_list = true;
    }

    /// Sends a descriptor along with the next message.
    pub fn attach(&mut self, file: OwnedFd) {
        self.sink.attach(file);
    }

    /// The descriptor that came with the request, if one did.
    pub fn received(&mut self) -> Option<OwnedFd> {
        self.sink.received()
    }

    /// The notifications that the request causes if it succeeds.
    pub fn notices(&mut self) -> &mut Datagram {
        &mut self.notices
    }

    /// Adds the notification of a filter that the request changes if it succeeds. `event`: a [`tc::Event`] as JSON. If it cannot
    /// be built, it is left out, as in the kernel when there is no memory for it.
    pub fn notify_of_filter(&mut self, event: &[u8]) {
        if self.filters.last().is_none_or(|last| last.len() >= DATAGRAM) {
            self.filters.push(Datagram::default());
        }
        let Some(to) = self.filters.last_mut() else { return };
        let _ = to.message(Header::new(ESWITCH, Flags::empty(), 0, 0), |to| {
            to.genl(FILTER, VERSION).put(FILTER_EVENT, event);
        });
    }

    /// Has a request that succeeds answered with a message, which programs print as a warning (NL_SET_ERR_MSG without
    /// an error).
    pub fn warn(&mut self, message: &'static str) {
        self.warning = Some(message);
    }

    /// Ends the reply: with the messages that were added, or with the error of `outcome` and none of those that have
    /// not been sent yet. `touched`: what the request may have changed.
    pub(crate) fn finish(mut self, cx: &mut Locked<'_, Unlocked>, touched: Touched, outcome: Result<(), Refusal>) {
        self.sink.done(cx, touched);
        if outcome.is_ok() && !self.notices.is_empty() {
            self.sink.notify(cx, &self.notices);
        }
        if outcome.is_ok() && !self.filters.is_empty() {
            self.sink.notify_of_filters(cx, &self.filters);
        }
        match outcome.and(self.failed.map_or(Ok(()), |error| Err(error.into()))) {
            Ok(()) if self.header.is_dump() && self.header.kind >= NLMSG_MIN_TYPE => self.end_dump(),
            // The acknowledgement is in the same datagram as the answer, so that the program is woken once.
            Ok(()) if self.header.flags.contains(Flags::ACK) => self.acknowledge(None),
            Ok(()) if self.is_list => self.end_dump(),
            Ok(()) => self.flush(),
            Err(refusal) => {
                self.datagram.clear();
                self.acknowledge(Some(&refusal));
            }
        }
    }

    /// Refuses the request.
    pub(crate) fn refuse(mut self, refusal: &Refusal) {
        self.acknowledge(Some(refusal));
    }

    fn flush(&mut self) {
        if !self.datagram.is_empty() {
            self.sink.send(self.datagram.bytes());
            self.datagram.clear();
        }
    }

    fn end_dump(&mut self) {
        self.datagram.done(&self.header, self.header.port);
        self.flush();
    }

    /// Sends an error, or without one an acknowledgement.
    fn acknowledge(&mut self, refusal: Option<&Refusal>) {
        let outcome = refusal.map_or(Ok(()), |refusal| Err(refusal.errno));
        self.datagram.ack_capped(&self.header, self.header.port, outcome, |to| {
            if let Some(refusal) = refusal {
                refusal.ext_ack().write(to);
            } else if let Some(warning) = self.warning {
                ExtAck { message: Some(warning), ..ExtAck::default() }.write(to);
            }
        });
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use netlink::{Errno, messages};

    use super::*;

    struct Nobody;

    impl Sink for Nobody {
        fn send(&mut self, _: &[u8]) {}

        fn done(&mut self, _: &mut Locked<'_, Unlocked>, _: Touched) {}
    }

    #[test]
    fn a_message_that_cannot_be_built_makes_an_error_of_the_answer() {
        // Given a reply of three messages,
        let (mut datagram, mut sink) = (Datagram::default(), Nobody);
        let mut reply = ReplyWriter::new(Header::default(), &mut datagram, &mut sink);
        // when the second is longer than an attribute can be,
        for length in [1, 70_000, 1] {
            reply.add(1, |to| {
                to.nest(2, |to| {
                    to.put(3, &vec![0; length / 2]).put(4, &vec![0; length / 2]);
                });
            });
        }
        // then the datagram holds nothing of it, and the request is to be answered with EMSGSIZE.
        let failed = reply.failed.map(|error| Refusal::from(error).errno);
        assert_eq!((messages(datagram.bytes()).count(), failed), (2, Some(Errno::MSGSIZE)));
    }
}
