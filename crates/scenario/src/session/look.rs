//! Checks whether expectations hold.

use eswitch::inspect::{PfView, PortView, RepState, Snapshot};
use eswitch::{PciAddress, PortHandle, RepType};
use lockdep::{Locked, Unlocked};

use super::{Session, StepError};
use crate::expectation::{AuxState, Expectation, SfExpectation};
use crate::show;

impl Session {
    /// Checks that an expectation holds now.
    ///
    /// # Errors
    /// [`StepError::Unmet`]: it does not hold; what was found instead.
    pub fn expect(&self, cx: &mut Locked<'_, Unlocked>, expectation: &Expectation) -> Result<(), StepError> {
        self.look(cx, expectation).map_err(|(expected, found)| StepError::Unmet { expected, found })
    }

    /// Checks an expectation.
    ///
    /// # Errors
    /// It does not hold: the statement, and what was found instead.
    pub(super) fn look(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        expectation: &Expectation,
    ) -> Result<(), (String, String)> {
        let differ = |holds: bool, expected: String, found: String| if holds { Ok(()) } else { Err((expected, found)) };
        match expectation {
            Expectation::Event(text, wanted) => {
                self.listen(cx);
                let found = self.chronicle.lock_leaf(cx).iter().find(|event| event.contains(text)).cloned();
                cx.learns(&found.is_some());
                let (no, happened) = match &found {
                    Some(event) => ("no ", format!("`{event}` has happened")),
                    None => ("an ", "none has happened".to_owned()),
                };
                return differ(found.is_some() == *wanted, format!("{no}event `{text}`"), happened);
            }
            Expectation::Netdev(name, wanted) => {
                let there = self.has_netdev(cx, name);
                return differ(
                    there == *wanted,
                    format!("netdev {name} {}", presence(*wanted)),
                    format!("it is {}", presence(there)),
                );
            }
            _ => {}
        }
        let snapshot = self.engine().inspect(cx);
        let unbound = |device: &PciAddress| format!("pci/{device} is not bound");
        let of_pf = |device: &PciAddress, expected: String, f: &dyn Fn(&PfView) -> (bool, String)| match show::pf(
            &snapshot, *device,
        ) {
            Some(pf) => {
                let (holds, found) = f(pf);
                differ(holds, expected, found)
            }
            None => Err((expected, unbound(device))),
        };
        let of_port = |port: &PortHandle, expected: String, f: &dyn Fn(&PortView) -> (bool, String)| match find_port(
            &snapshot, *port,
        ) {
            Some(view) => {
                let (holds, found) = f(view);
                differ(holds, expected, found)
            }
            None => Err((expected, format!("there is no port {port}"))),
        };
        match expectation {
            Expectation::Mode(device, mode) => of_pf(device, format!("mode {mode} on pci/{device}"), &|pf| {
                (pf.mode == *mode, format!("it is {}", pf.mode))
            }),
            Expectation::Vfs(device, n) => of_pf(device, format!("{n} VFs on pci/{device}"), &|pf| {
                (pf.num_vfs == *n, format!("there are {}", pf.num_vfs))
            }),
            Expectation::Rules(device, n) => {
                let pf = show::pf(&snapshot, *device).map(|pf| pf.index);
                let found = pf.map_or(0, |pf| self.engine().flow_rules(cx, pf).len());
                differ(found == *n, format!("{n} rules on pci/{device}"), format!("there are {found}"))
            }
            Expectation::Bound(device, wanted) => {
                let bound = show::pf(&snapshot, *device).is_some() || self.is_vf_bound(&snapshot, *device);
                let word = |bound| if bound { "bound" } else { "unbound" };
                differ(bound == *wanted, format!("pci/{device} {}", word(*wanted)), format!("it is {}", word(bound)))
            }
            Expectation::Rep(port, ty, state) => {
                of_port(port, format!("{ty} representor of {port} {state}"), &|view| {
                    let found = &view.reps[usize::from(*ty == RepType::Ib)];
                    let why = match found {
                        RepState::Failed(failure) => format!(" ({})", failure.error),
                        _ => String::new(),
                    };
                    (found.to_string() == *state, format!("it is {found}{why}"))
                })
            }
            Expectation::Reps(device, ty, state, n) => {
                of_pf(device, format!("{n} {ty} representors {state} on pci/{device}"), &|pf| {
                    let of_type = pf.ports.iter().map(|p| p.reps[usize::from(*ty == RepType::Ib)].to_string());
                    let found = of_type.filter(|found| found == state).count();
                    (found == *n, format!("there are {found}"))
                })
            }
            Expectation::Lag(mode) => {
                let found = snapshot.lag.mode;
                differ(found == *mode, format!("lag {mode}"), format!("it is {found}"))
            }
            Expectation::LagReason(text) => {
                let found = snapshot.lag.reason.clone().unwrap_or_else(|| "there is none".to_owned());
                let expected = format!("no LAG, for a reason with `{text}`");
                differ(found.contains(text.as_str()), expected, format!("the reason is: {found}"))
            }
            Expectation::Module(name, wanted) => {
                let module = eswitch::module::find(name).map_or("", |module| module.name);
                let loaded = snapshot.modules.contains(&module);
                let word = |loaded| if loaded { "loaded" } else { "absent" };
                differ(loaded == *wanted, format!("module {name} {}", word(*wanted)), format!("it is {}", word(loaded)))
            }
            Expectation::Aux(name, wanted) => {
                let mut all = snapshot.pfs.iter().flat_map(|pf| &pf.auxiliary);
                let found = match all.find(|device| device.name == *name) {
                    Some(device) if device.bound => AuxState::Bound,
                    Some(_) => AuxState::Unbound,
                    None => AuxState::Absent,
                };
                let word = |state: AuxState| format!("{state:?}").to_lowercase();
                differ(found == *wanted, format!("{name} {}", word(*wanted)), format!("it is {}", word(found)))
            }
            Expectation::Port(port, wanted) => {
                let there = find_port(&snapshot, *port).is_some();
                differ(
                    there == *wanted,
                    format!("port {port} {}", presence(*wanted)),
                    format!("it is {}", presence(there)),
                )
            }
            Expectation::Sf(port, wanted) => {
                of_port(port, format!("SF {port} {}", sf_words(*wanted)), &|view| match view.sf {
                    Some(sf) => {
                        let holds = wanted.active.is_none_or(|active| active == sf.active)
                            && wanted.attached.is_none_or(|attached| attached == sf.attached);
                        let found = SfExpectation { active: Some(sf.active), attached: Some(sf.attached) };
                        (holds, format!("it is {}", sf_words(found)))
                    }
                    None => (false, "that port is no SF's".to_owned()),
                })
            }
            Expectation::Event(..) | Expectation::Netdev(..) => Ok(()),
        }
    }

    /// Whether the VF at an address is bound to its driver.
    fn is_vf_bound(&self, snapshot: &Snapshot, address: PciAddress) -> bool {
        let Some((pf, number)) = self.engine().config().vf_at(address) else { return false };
        let mut vfs = snapshot.pfs.iter().filter(|view| view.index == pf).flat_map(|view| &view.vfs);
        vfs.any(|vf| vf.number == number && vf.info.bound)
    }

    fn has_netdev(&self, cx: &mut Locked<'_, Unlocked>, name: &str) -> bool {
        if let Some(programs) = &self.world().programs {
            return programs.has_netdev(name);
        }
        let mut cx = cx.narrow();
        let resources = self.world().card.resources(&mut cx);
        resources.iter().any(|r| self.world().card.name(&mut cx, r).as_deref() == Some(name))
    }
}

fn find_port(snapshot: &Snapshot, port: PortHandle) -> Option<&PortView> {
    snapshot.pfs.iter().flat_map(|pf| &pf.ports).find(|view| view.handle == port)
}

fn presence(there: bool) -> &'static str {
    if there { "present" } else { "absent" }
}

fn sf_words(sf: SfExpectation) -> String {
    let active = sf.active.map(|yes| if yes { "active" } else { "inactive" });
    let attached = sf.attached.map(|yes| if yes { "attached" } else { "detached" });
    let words: Vec<&str> = active.into_iter().chain(attached).collect();
    words.join(" ")
}
