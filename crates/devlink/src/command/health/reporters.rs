//! The health reporters of mlx5 (`drivers/net/ethernet/mellanox/mlx5/core`: `health.c`, `diag/reporter_vnic.c`,
//! `en/reporter_tx.c`, `en/reporter_rx.c`). Here nothing that they watch can fail, so they are healthy, and their
//! counters are 0.

use eswitch::Vport;
use eswitch::inspect::PfView;
use netlink::{Builder, Errno};

use super::HEALTHY;
use crate::command::dev::put_name;
use crate::instance::Instance;
use crate::nests::nest;
use crate::numbers::{attribute as a, command as c, nla};
use crate::refusal::Refusal;
use crate::reply::ReplyWriter;
use crate::settings::{ReporterKey, ReporterSettings};
use crate::view::DeviceName;

/// The purpose of a reporter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Errors that the firmware reports.
    Firmware,
    /// Errors after which the firmware has to be recovered.
    FatalFirmware,
    /// Counters of a vport.
    Vnic,
    /// Send queues.
    Tx,
    /// Receive queues.
    Rx,
}

impl Kind {
    /// The name of the reporter.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Firmware => "fw",
            Self::FatalFirmware => "fw_fatal",
            Self::Vnic => "vnic",
            Self::Tx => "tx",
            Self::Rx => "rx",
        }
    }

    /// The pause between two recoveries, in milliseconds. `None`: the driver cannot recover from what it reports.
    fn grace_period(self, dpu: bool) -> Option<u64> {
        match self {
            Self::Firmware | Self::Vnic => None,
            // MLX5_FW_REPORTER_ECPF_GRACEFUL_PERIOD and MLX5_FW_REPORTER_PF_GRACEFUL_PERIOD.
            Self::FatalFirmware => Some(if dpu { 180_000 } else { 60_000 }),
            // MLX5E_REPORTER_..._GRACEFUL_PERIOD.
            Self::Tx | Self::Rx => Some(500),
        }
    }

    /// Whether the driver has a dump for the reporter.
    pub(super) fn has_dump(self) -> bool {
        self != Self::Vnic
    }
}

/// A reporter.
#[derive(Clone, Debug)]
pub(super) struct Reporter {
    pub kind: Kind,
    device: DeviceName,
    /// The index of the port that it belongs to, if it does not belong to the device.
    pub port: Option<u32>,
    dpu: bool,
}

/// The reporters of a PF: those of its device; those of the queues of its netdev, on the port of the uplink; and, on the
/// port of each representor that has a netdev, the counters of its vport (`mlx5e_rep_vnic_reporter_create`).
pub(super) fn of_pf(pf: &PfView, dpu: bool) -> Vec<Reporter> {
    let of = |kind, port| Reporter { kind, device: DeviceName::Pci(pf.address), port, dpu };
    let mut reporters: Vec<_> =
        [Kind::Firmware, Kind::FatalFirmware, Kind::Vnic].map(|kind| of(kind, None)).into_iter().collect();
    for port in pf.ports.iter().filter(|port| port.netdev.is_some()) {
        let kinds: &[Kind] = if port.vport == Vport::Uplink { &[Kind::Tx, Kind::Rx] } else { &[Kind::Vnic] };
        reporters.extend(kinds.iter().map(|kind| of(*kind, Some(port.handle.index.0))));
    }
    reporters
}

/// The reporters of the instance of a VF or SF, which does not manage the firmware: the counters of its vport, and those
/// of the queues of its netdev if it has one.
pub(super) fn of_instance(instance: &Instance) -> Vec<Reporter> {
    let of = |kind, port| Reporter { kind, device: instance.device, port, dpu: false };
    let queues = instance.netdev.iter().flat_map(|_| [Kind::Tx, Kind::Rx]);
    let queues = queues.map(|kind| of(kind, Some(instance.port)));
    [of(Kind::Vnic, None)].into_iter().chain(queues).collect()
}

impl Reporter {
    /// What identifies it.
    pub(super) fn key(&self) -> ReporterKey {
        (self.device, self.port, self.kind.name().into())
    }

    /// Whether the driver can recover from what it reports.
    pub(super) fn recovers(&self) -> bool {
        self.kind.grace_period(self.dpu).is_some()
    }

    /// The error with which the driver refuses a dump.
    pub(super) fn no_dump(&self) -> Errno {
        match self.kind {
            // `mlx5_crdump_collect`: the function has no vendor-specific capability.
            Kind::FatalFirmware => Errno::NODEV,
            // `mlx5_fw_tracer_trigger_core_dump_general`: there is no tracer of the firmware. `mlx5e_health_rsc_fmsg_dump`: there
            // is no dump of resources. The reporter of counters has no dump at all.
            Kind::Firmware | Kind::Tx | Kind::Rx | Kind::Vnic => Errno::OPNOTSUPP,
        }
    }

    /// Adds its description. It has only those settings that its driver's operations give a sense
    /// (`devlink_nl_health_reporter_fill`).
    pub(super) fn put(&self, to: &mut Builder, settings: ReporterSettings) {
        put_name(to, self.device);
        if let Some(port) = self.port {
            to.u32(a::PORT_INDEX, port);
        }
        nest(to, a::HEALTH_REPORTER, |to| {
            to.text(a::HEALTH_REPORTER_NAME, self.kind.name()).u8(a::HEALTH_REPORTER_STATE, HEALTHY);
            to.u64(a::HEALTH_REPORTER_ERR_COUNT, 0).u64(a::HEALTH_REPORTER_RECOVER_COUNT, 0);
            if let Some(period) = self.kind.grace_period(self.dpu) {
                to.u64(a::HEALTH_REPORTER_GRACEFUL_PERIOD, settings.grace_period.unwrap_or(period));
                to.u8(a::HEALTH_REPORTER_AUTO_RECOVER, settings.auto_recover.unwrap_or(true).into());
            }
            if self.kind.has_dump() {
                to.u8(a::HEALTH_REPORTER_AUTO_DUMP, settings.auto_dump.unwrap_or(true).into());
            }
        });
    }

    /// Answers a diagnosis. That of queues is empty, as mlx5's is while the netdev has none: this card does not know the
    /// kernel's queues by their numbers.
    ///
    /// # Errors
    /// EOPNOTSUPP: the driver has no diagnosis for the reporter.
    pub(super) fn diagnose(&self, reply: &mut ReplyWriter<'_>) -> Result<(), Refusal> {
        let fill: fn(&mut Builder) = match self.kind {
            Kind::Firmware => |to| {
                to.flag(a::FMSG_OBJ_NEST_START);
                number(to, "Syndrome", &Number::Byte(0));
                to.flag(a::FMSG_NEST_END);
            },
            Kind::Vnic => counters,
            Kind::Tx | Kind::Rx => |to| {
                to.flag(a::FMSG_OBJ_NEST_START).flag(a::FMSG_NEST_END);
            },
            Kind::FatalFirmware => return Err(Refusal::bare(Errno::OPNOTSUPP)),
        };
        reply.add(c::HEALTH_DIAGNOSE, |to| nest(to, a::FMSG, fill));
        Ok(())
    }
}

/// A value of a diagnosis.
enum Number {
    Byte(u8),
    Counter(u32),
    LongCounter(u64),
}

fn number(to: &mut Builder, name: &str, value: &Number) {
    to.flag(a::FMSG_PAIR_NEST_START).text(a::FMSG_OBJ_NAME, name);
    match value {
        Number::Byte(value) => to.u8(a::FMSG_OBJ_VALUE_TYPE, nla::U8).u8(a::FMSG_OBJ_VALUE_DATA, *value),
        Number::Counter(value) => to.u8(a::FMSG_OBJ_VALUE_TYPE, nla::U32).u32(a::FMSG_OBJ_VALUE_DATA, *value),
        Number::LongCounter(value) => to.u8(a::FMSG_OBJ_VALUE_TYPE, nla::U64).u64(a::FMSG_OBJ_VALUE_DATA, *value),
    };
    to.flag(a::FMSG_NEST_END);
}

/// The counters of a vport (`mlx5_reporter_vnic_diagnose_counters`): of queues and commands, which here cannot fail, and
/// of packets that steering in hardware has dropped, of which there is none.
fn counters(to: &mut Builder) {
    const SHORT: [&str; 7] = [
        "total_error_queues",
        "send_queue_priority_update_flow",
        "comp_eq_overrun",
        "async_eq_overrun",
        "cq_overrun",
        "invalid_command",
        "quota_exceeded_command",
    ];
    to.flag(a::FMSG_OBJ_NEST_START).flag(a::FMSG_PAIR_NEST_START);
    to.text(a::FMSG_OBJ_NAME, "vNIC env counters").flag(a::FMSG_OBJ_NEST_START);
    SHORT.iter().for_each(|name| number(to, name, &Number::Counter(0)));
    number(to, "nic_receive_steering_discard", &Number::LongCounter(0));
    to.flag(a::FMSG_NEST_END).flag(a::FMSG_NEST_END).flag(a::FMSG_NEST_END);
}
