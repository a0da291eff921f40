//! The drivers of auxiliary devices.
//!
//! Probe and remove run under the auxiliary device's lock. They run either on the thread of a rescan, which holds the
//! devlink lock of some PF and the devcom component, or on the thread that loads or unloads a module, which holds
//! neither. So they can rely on neither lock. Their token is at [`Probe`], so they can take the representor lock and
//! the locks after it, and no other. In particular they cannot take the devlink lock, which is why registering ops only
//! queues the loading of representors.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use lockdep::{Locked, Mutex, digest};

use crate::auxiliary::{AuxKind, Function};
use crate::card::{CardError, Create, FailedCreate, Resource};
use crate::device::Pf;
use crate::error::Result;
use crate::eswitch::{RepEvent, RepOps};
use crate::ids::{PfIndex, RepType, Vport};
use crate::lag::LagMode;
use crate::lock_order::{LentOps, Probe, RepCallback, RepOps as RepOpsClass, Representors, ResourceCall};
use crate::shared::Shared;

/// A driver on the auxiliary bus.
pub trait AuxiliaryDriver: Send + Sync {
    /// The driver's name, for example `mlx5_core.eth`.
    fn name(&self) -> &'static str;

    /// The kind of device to which the driver binds.
    fn kind(&self) -> AuxKind;

    /// Binds the driver to a device of `function`.
    ///
    /// # Errors
    /// The first failure, after everything has been undone.
    fn probe(&self, cx: &mut Locked<'_, Probe>, function: &Function) -> Result<Box<dyn BoundDriver>>;
}

/// A driver that is bound to a device.
pub trait BoundDriver: Send {
    /// Unbinds the driver from the device. Cannot fail.
    fn remove(self: Box<Self>, cx: &mut Locked<'_, Probe>);
}

/// A driver that makes one resource for the device's function: a netdev or an RDMA device.
pub struct DeviceDriver {
    name: &'static str,
    kind: AuxKind,
    resource: fn(&Function) -> Resource,
}

/// The driver of the netdev of a PF or an SF.
pub static ETH: DeviceDriver = DeviceDriver {
    name: "mlx5_core.eth",
    kind: AuxKind::Eth,
    resource: |function| match function {
        Function::Pf(pf) => Resource::PfNetdev(pf.index()),
        Function::Sf(sf) => Resource::SfNetdev(sf.pf().index(), sf.vport()),
    },
};

/// The driver of the RDMA device of a PF or an SF.
pub static RDMA: DeviceDriver = DeviceDriver {
    name: "mlx5_ib.rdma",
    kind: AuxKind::Rdma,
    resource: |function| match function {
        Function::Pf(pf) => Resource::PfIbDevice(pf.index()),
        Function::Sf(sf) => Resource::SfIbDevice(sf.pf().index(), sf.vport()),
    },
};

impl AuxiliaryDriver for DeviceDriver {
    fn name(&self) -> &'static str {
        self.name
    }

    fn kind(&self) -> AuxKind {
        self.kind
    }

    fn probe(&self, cx: &mut Locked<'_, Probe>, function: &Function) -> Result<Box<dyn BoundDriver>> {
        let pf = function.pf();
        let resource = (self.resource)(function);
        let (mac, sfnum) = match function {
            Function::Pf(pf) => (pf.mac_of(Vport::Uplink), None),
            Function::Sf(sf) => (sf.mac(cx).or_own(pf.mac_of(sf.vport())), Some(sf.sfnum().0)),
        };
        pf.shared.create(cx, resource, mac, sfnum)?;
        if let Resource::PfNetdev(pf_index) = resource {
            pf.shared.lag.netdev_added(cx, pf_index);
        }
        Ok(Box::new(BoundDevice { shared: Arc::clone(&pf.shared), resource }))
    }
}

struct BoundDevice {
    shared: Arc<Shared>,
    resource: Resource,
}

impl BoundDriver for BoundDevice {
    fn remove(self: Box<Self>, cx: &mut Locked<'_, Probe>) {
        if let Resource::PfNetdev(pf) = self.resource {
            self.shared.lag.netdev_removed(cx, pf);
        }
        self.shared.destroy(cx, &[self.resource]);
    }
}

/// A driver that registers ops for one type of representor.
pub struct RepDriver {
    name: &'static str,
    kind: AuxKind,
    ty: RepType,
}

/// The driver of netdev representors.
pub static ETH_REP: RepDriver = RepDriver { name: "mlx5_core.eth-rep", kind: AuxKind::EthRep, ty: RepType::Eth };

/// The driver of RDMA representors.
pub static RDMA_REP: RepDriver = RepDriver { name: "mlx5_ib.rdma-rep", kind: AuxKind::RdmaRep, ty: RepType::Ib };

impl AuxiliaryDriver for RepDriver {
    fn name(&self) -> &'static str {
        self.name
    }

    fn kind(&self) -> AuxKind {
        self.kind
    }

    fn probe(&self, cx: &mut Locked<'_, Probe>, function: &Function) -> Result<Box<dyn BoundDriver>> {
        let pf = Arc::clone(function.pf());
        let ops = Arc::new(CardReps {
            shared: Arc::clone(&pf.shared),
            pf: pf.index(),
            ty: self.ty,
            lent: None,
            borrowers: CardReps::no_borrowers(pf.index(), self.ty),
        });
        pf.eswitch.register(cx, &pf.shared.events, self.ty, ops)?;
        Ok(Box::new(BoundReps { pf, ty: self.ty }))
    }
}

struct BoundReps {
    pf: Arc<Pf>,
    ty: RepType,
}

impl BoundDriver for BoundReps {
    fn remove(self: Box<Self>, cx: &mut Locked<'_, Probe>) {
        self.pf.eswitch.unregister(cx, &self.pf.shared.events, self.ty);
    }
}

/// Ops whose representors are resources of the card.
struct CardReps {
    shared: Arc<Shared>,
    pf: PfIndex,
    ty: RepType,
    /// If set, a master has registered these ops on this PF, for as long as the LAG is in this mode.
    lent: Option<LagMode>,
    /// The peers on which this PF's uplink has registered ops.
    borrowers: Mutex<LentOps, Vec<Arc<Pf>>>,
}

impl CardReps {
    fn no_borrowers(pf: PfIndex, ty: RepType) -> Mutex<LentOps, Vec<Arc<Pf>>> {
        Mutex::new(Vec::new()).with_role(&("borrowers", pf, ty)).with_state_digest(digest)
    }

    fn resource(&self, vport: Vport) -> Resource {
        Resource::Representor(self.pf, vport, self.ty)
    }

    fn request(&self, vport: Vport) -> Create {
        Create { resource: self.resource(vport), mac: self.shared.config.rep_mac(self.pf, vport), sfnum: None }
    }

    /// Makes one resource of the card.
    fn create(&self, cx: &mut Locked<'_, ResourceCall>, request: Create) -> Result<(), CardError> {
        self.shared.make(cx, &[request]).pop().map_or(Ok(()), |failed| Err(failed.error))
    }

    /// Those of the vports, which are in order, whose representor is a resource of the card. These are all except the
    /// uplink of a peer with which the master shares its forwarding database: the peer uses the master's uplink.
    fn on_card<'a>(&self, vports: &'a [Vport]) -> &'a [Vport] {
        let shares_uplink = self.lent == Some(LagMode::SharedFdb);
        vports.strip_prefix(&[Vport::Uplink]).filter(|_| shares_uplink).unwrap_or(vports)
    }

    /// Registers ops on the peers, if this is the uplink of a master, whose RDMA device then has the peers' vports as
    /// ports.
    fn lend_to_peers(&self, cx: &mut Locked<'_, Representors>) -> Result<()> {
        let Some((mode, peers)) = self.shared.lag.peers_of(cx, self.pf) else { return Ok(()) };
        for peer in peers {
            let ops = Arc::new(Self {
                shared: Arc::clone(&self.shared),
                pf: peer.index(),
                ty: self.ty,
                lent: Some(mode),
                borrowers: Self::no_borrowers(peer.index(), self.ty),
            });
            if let Err(error) = peer.eswitch.lend(cx, &self.shared.events, self.ty, ops) {
                self.take_back_from_peers(cx);
                return Err(error);
            }
            self.borrowers.lock_leaf(cx).push(peer);
        }
        Ok(())
    }

    fn take_back_from_peers(&self, cx: &mut Locked<'_, Representors>) {
        let borrowers = std::mem::take(&mut *self.borrowers.lock_leaf(cx));
        for peer in borrowers.into_iter().rev() {
            peer.eswitch.take_back(cx, &self.shared.events, self.ty);
        }
    }
}

impl RepOps for CardReps {
    fn load_uplink(&self, cx: &mut Locked<'_, Representors>) -> Result<(), CardError> {
        self.create(&mut cx.narrow(), self.request(Vport::Uplink))?;
        match self.ty {
            RepType::Eth => self.shared.lag.netdev_added(cx, self.pf),
            RepType::Ib => {
                if let Err(error) = self.lend_to_peers(cx) {
                    self.shared.destroy(cx, &[self.resource(Vport::Uplink)]);
                    return Err(CardError::Full(format!("cannot register ops on a peer: {error}")));
                }
            }
        }
        Ok(())
    }

    fn unload_uplink(&self, cx: &mut Locked<'_, Representors>) {
        if self.ty == RepType::Ib {
            self.take_back_from_peers(cx);
        }
        self.shared.destroy(cx, &[self.resource(Vport::Uplink)]);
    }

    fn load(&self, cx: &mut Locked<'_, RepCallback>, vports: &[Vport]) -> Vec<FailedCreate> {
        let on_card = self.on_card(vports);
        let requests: Vec<Create> = on_card.iter().map(|v| self.request(*v)).collect();
        let mut failures = self.shared.make(&mut cx.narrow(), &requests);
        for failed in &mut failures {
            failed.at += vports.len() - on_card.len();
        }
        failures
    }

    fn unload(&self, cx: &mut Locked<'_, RepCallback>, vports: &[Vport]) {
        let resources: Vec<Resource> = self.on_card(vports).iter().map(|v| self.resource(*v)).collect();
        self.shared.destroy(cx, &resources);
    }

    fn uplink_is_port(&self) -> bool {
        self.lent.is_some()
    }

    fn takes_pairing(&self) -> bool {
        self.ty == RepType::Eth
    }

    fn identify(&self, mut state: &mut dyn Hasher) {
        (self.pf, self.ty, self.lent, &self.borrowers).hash(&mut state);
    }

    /// Only the uplink's representor makes rules for traffic from a peer. They are rules of the shared wire, and serve
    /// the other representors too.
    fn event(&self, cx: &mut Locked<'_, RepCallback>, vport: Vport, event: RepEvent) -> Result<(), CardError> {
        if vport != Vport::Uplink {
            return Ok(());
        }
        match event {
            RepEvent::Pair(peer) => {
                let request = Create { resource: Resource::PeerRules(self.pf, peer), ..self.request(Vport::Uplink) };
                self.create(&mut cx.narrow(), request)
            }
            RepEvent::Unpair(peer) => {
                self.shared.destroy(cx, &[Resource::PeerRules(self.pf, peer)]);
                Ok(())
            }
        }
    }

    fn protocol_device(&self, cx: &mut Locked<'_, RepOpsClass>, vport: Vport) -> Option<String> {
        self.shared.card.name(&mut cx.narrow(), &self.resource(vport))
    }
}
