//! Brings devlink instances and RDMA devices home whose network namespace has died, as the kernel does
//! (`devlink_pernet_pre_exit`, `rdma_dev_exit_net`).

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use eswitch::Touched;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use crate::card::{Cx, Served};
use crate::carried_out;
use crate::command::bring_home;

/// A thread that brings instances home until this is dropped.
pub(crate) struct Homecoming {
    /// Closing it ends the thread.
    stop: Option<io::PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Homecoming {
    /// Starts the thread; `None` for a card without netdevs.
    ///
    /// # Errors
    /// The system has no socket or no thread.
    pub fn start(served: &Arc<Served>) -> io::Result<Option<Self>> {
        let Some(netdevs) = &served.netdevs else { return Ok(None) };
        let deaths = netdevs.deaths()?;
        let (stopped, stop) = io::pipe()?;
        let (domain, served) = (Arc::clone(&served.domain), Arc::clone(served));
        let follow = move || lockdep::enter(&domain, "homecoming", |cx| follow(&served, cx, &deaths, &stopped));
        let thread = thread::Builder::new().name("homecoming".to_owned()).spawn(follow)?;
        Ok(Some(Self { stop: Some(stop), thread: Some(thread) }))
    }
}

impl Drop for Homecoming {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn follow(served: &Served, cx: Cx<'_, '_>, deaths: &OwnedFd, stopped: &io::PipeReader) {
    let mut buffer = vec![0; 16 << 10];
    // One may have died while there was no process that could see it.
    bring_all_home(served, cx);
    loop {
        let mut polled = [PollFd::new(deaths, PollFlags::IN), PollFd::new(stopped, PollFlags::IN)];
        match poll(&mut polled, None) {
            Ok(_) if !polled[1].revents().is_empty() => return,
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
        // What they say is looked up, so it does not matter if some were lost.
        while matches!(recv(deaths, &mut buffer[..], RecvFlags::DONTWAIT), Ok(_) | Err(Errno::NOBUFS | Errno::INTR)) {}
        bring_all_home(served, cx);
    }
}

fn bring_all_home(served: &Served, cx: Cx<'_, '_>) {
    served.bring_rdma_home(cx);
    let homeless = served.netdevs.as_ref().map(|netdevs| netdevs.homeless(cx)).unwrap_or_default();
    for (pf, vport) in homeless {
        let outcome = bring_home(served, cx, pf, vport);
        let address = served.card.engine().config().pf_address(pf);
        carried_out::homecoming(served, cx, address, vport, outcome);
        served.publish(cx, Touched::PfAndMultiport(address));
    }
}
