//! `esw exec`: a program in a lab, where it sees the cards that are up.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use lab::{Card, Join, Options, sysfs};
use rustix::net::sockopt::socket_peercred;

use crate::arguments::{Exec, Shell};
use crate::output::complain;
use crate::remote::Remote;
use crate::shell::{UNNAMED, in_lab};
use crate::sockets::{ConnectedCard, connect};

/// Runs the command; its exit status is the program's.
///
/// # Errors
/// No card is up, or there can be no lab.
pub fn exec(arguments: &Exec) -> Result<u8> {
    run(connect(&arguments.which)?, &arguments.program, arguments.exact_addresses, arguments.verbose)
}

/// Runs a shell in a lab.
///
/// # Errors
/// No card is up, or there can be no lab.
pub fn shell(arguments: &Shell) -> Result<u8> {
    run(connect(&arguments.which)?, &[], false, true)
}

fn run(found: Vec<ConnectedCard>, words: &[String], exact_addresses: bool, verbose: bool) -> Result<u8> {
    let program = in_lab(words, UNNAMED)?;
    let (cards, options) = prepare(found, exact_addresses, verbose)?;
    let status = lab::run(cards, program.command, options);
    drop(program.files);
    let status = status?;
    Ok(status.clamp(0, 255) as u8)
}

/// The cards of a lab, and its options. `verbose`: what this kernel cannot show of the cards is reported.
///
/// # Errors
/// A card does not answer, or they are in different places.
pub fn prepare(
    found: Vec<ConnectedCard>,
    exact_addresses: bool,
    verbose: bool,
) -> Result<(Vec<Arc<dyn Card>>, Options)> {
    let join = place_of(&found)?;
    let mut remotes = Vec::new();
    for card in found {
        drop(card.client);
        let remote = Remote::connect(&card.path);
        remotes.push(Arc::new(remote.with_context(|| format!("reading the state of {}", card.name))?));
    }
    let cards: Vec<Arc<dyn Card>> = remotes.iter().map(|remote| Arc::clone(remote) as Arc<dyn Card>).collect();
    let uevents = Arc::default();
    let (mounter, server) = sysfs::prepare()?;
    let serve: lab::Serve = {
        let (cards, uevents) = (cards.clone(), Arc::clone(&uevents));
        Box::new(move |domain| {
            for remote in &remotes {
                // Without this thread the lab works until the daemon ends.
                let _ = remote.stay_connected();
            }
            // If this fails, mounting fails too, and has the reason.
            Box::new(server.serve(cards, uevents, domain))
        })
    };
    let mounts: lab::Mounts = Box::new(move || match mounter.mount() {
        Ok(missing) => {
            if verbose {
                missing.0.iter().for_each(|text| complain!("esw: {text}"));
            }
            Ok(())
        }
        Err(error) => {
            complain!("esw: {error}");
            Err(std::io::Error::other(error))
        }
    });
    let options = Options {
        join: Some(join),
        mounts: Some(mounts),
        serve: Some(serve),
        uevents,
        exact_addresses,
        lockdep: false,
    };
    Ok((cards, options))
}

/// The namespaces of the cards' netdevs that differ from those of this process.
fn place_of(found: &[ConnectedCard]) -> Result<Join> {
    let mut place: Option<Join> = None;
    for card in found {
        let pid = socket_peercred(card.client.socket())?.pid.as_raw_pid();
        let join =
            Join { user: elsewhere(pid, "user")?, network: elsewhere(pid, "net")?, mounts: elsewhere(pid, "mnt")? };
        match &place {
            Some(first) if !same(first, &join)? => {
                bail!("{} is in another network namespace than the others; choose one card with --card", card.name)
            }
            _ => place = Some(join),
        }
    }
    Ok(place.unwrap_or_default())
}

fn same(a: &Join, b: &Join) -> Result<bool> {
    let number = |join: &Join| match &join.network {
        None => Ok(None),
        Some(namespace) => rustix::fs::fstat(namespace).map(|found| Some(found.st_ino)),
    };
    Ok(number(a)? == number(b)?)
}

/// A process's namespace of a kind, if it differs from that of this process.
fn elsewhere(pid: i32, kind: &str) -> Result<Option<OwnedFd>> {
    let theirs = format!("/proc/{pid}/ns/{kind}");
    let number = |path: &str| rustix::fs::stat(path).map(|found| (found.st_dev, found.st_ino));
    let their = number(&theirs).with_context(|| {
        format!(
            "{theirs}: a lab is made in the namespaces of the daemon, which only root and the daemon's user may enter"
        )
    })?;
    if their == number(&format!("/proc/self/ns/{kind}"))? {
        return Ok(None);
    }
    Ok(Some(File::open(&theirs).with_context(|| theirs.clone())?.into()))
}
