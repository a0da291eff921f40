//! `devlink dev param`.

use std::collections::HashSet;

use eswitch::auxiliary::AuxiliaryName;
use eswitch::devlink::{InitParams, Parts, SteeringMode};
use eswitch::inspect::PfView;
use eswitch::lag::LagMode;
use eswitch::{CardConfig, PciAddress};
use netlink::{Builder, Datagram, Errno};

use super::dev::{bound, put_name};
use crate::card::{Cx, Served};
use crate::instance::{self, Instance, Named};
use crate::nests::nest;
use crate::notify::message;
use crate::numbers::{attribute as a, command as c, nla};
use crate::refusal::Refusal;
use crate::reply::ReplyWriter;
use crate::request::Attributes;
use crate::view::DeviceName;

/// DEVLINK_PARAM_CMODE_*.
const RUNTIME: u8 = 0;
const DRIVERINIT: u8 = 1;

/// A parameter's value.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Bool(bool),
    Number(u32),
    Text(&'static str),
}

/// A parameter.
struct Param {
    name: &'static str,
    /// Whether it is a generic parameter of devlink, rather than the driver's own.
    generic: bool,
    cmode: u8,
    get: fn(&Served, Cx<'_, '_>, PciAddress) -> Result<Value, Refusal>,
    set: fn(&Served, Cx<'_, '_>, PciAddress, Given<'_>) -> Result<(), Refusal>,
}

/// The value in a request.
enum Given<'a> {
    Bool(bool),
    Number(u32),
    Text(&'a str),
}

impl<'a> Given<'a> {
    fn bool(&self) -> Result<bool, Refusal> {
        match self {
            Self::Bool(value) => Ok(*value),
            Self::Text(_) | Self::Number(_) => Err(Refusal::bare(Errno::INVAL)),
        }
    }

    fn text(&self) -> Result<&'a str, Refusal> {
        match self {
            Self::Text(value) => Ok(value),
            Self::Bool(_) | Self::Number(_) => Err(Refusal::bare(Errno::INVAL)),
        }
    }
}

impl Given<'_> {
    fn number(&self) -> Result<u32, Refusal> {
        match self {
            Self::Number(value) => Ok(*value),
            Self::Bool(_) | Self::Text(_) => Err(Refusal::bare(Errno::INVAL)),
        }
    }
}

/// A parameter of cmode driverinit: `$field` of [`InitParams`], of which `$read` makes a value of a request, and which
/// is set if `$validate` accepts it.
macro_rules! driverinit {
    ($name:literal, $generic:literal, $field:ident, $kind:ident, $read:ident, $validate:expr) => {
        Param {
            name: $name,
            generic: $generic,
            cmode: DRIVERINIT,
            get: |served, cx, device| Ok(Value::$kind(init_params(served, cx, device)?.$field)),
            set: |served, cx, device, given| {
                let value = given.$read()?;
                $validate(served, &mut *cx, value)?;
                Ok(served.card.engine().change_params(cx, device, |params| params.init.$field = value)?)
            },
        }
    };
}

/// A parameter that can only be set to the value that it has.
macro_rules! fixed {
    ($name:literal, $generic:literal, $value:literal, $why:literal) => {
        Param {
            name: $name,
            generic: $generic,
            cmode: DRIVERINIT,
            get: |_, _, _| Ok(Value::Bool($value)),
            set: |_, _, _, given| match given.bool()? {
                $value => Ok(()),
                _ => Err(Refusal::unsupported(concat!("mlx5_core: ", $why))),
            },
        }
    };
}

const PARAMS: &[Param] = &[
    Param { name: "esw_multiport", generic: false, cmode: RUNTIME, get: get_multiport, set: set_multiport },
    Param { name: "esw_port_metadata", generic: false, cmode: RUNTIME, get: get_metadata, set: set_metadata },
    Param { name: "flow_steering_mode", generic: false, cmode: RUNTIME, get: get_steering, set: set_steering },
    driverinit!("enable_roce", true, roce, Bool, bool, may_change_roce),
    driverinit!("enable_rdma", true, rdma, Bool, bool, accept),
    driverinit!("io_eq_size", true, io_eq_size, Number, number, valid_eq_size),
    driverinit!("event_eq_size", true, event_eq_size, Number, number, valid_eq_size),
    fixed!("enable_eth", true, true, "a PF of this card always has its netdev; unbind its driver instead"),
    driverinit!("max_macs", true, max_macs, Number, number, valid_max_macs),
    driverinit!("fdb_large_groups", false, fdb_large_groups, Number, number, valid_groups),
    driverinit!("hairpin_num_queues", false, hairpin_num_queues, Number, number, valid_hairpin_queues),
    driverinit!("hairpin_queue_size", false, hairpin_queue_size, Number, number, valid_hairpin_size),
    driverinit!("enable_sfs_aux_devs", false, sfs_aux_devs, Bool, bool, accept),
];

/// A parameter of the instance of a VF or SF. All are of cmode driverinit.
struct FunctionParam {
    name: &'static str,
    generic: bool,
    kind: FunctionParamKind,
}

enum FunctionParamKind {
    /// Whether the driver makes a part of the function when the instance is reloaded (`mlx5_devlink_enable_rdma_validate` takes
    /// both).
    Part,
    /// A number that is stored and shown, as the kernel has the queues: its default, and what it may be.
    Number(u32, fn(&Served, Cx<'_, '_>, u32) -> Result<(), Refusal>),
}

const fn part(name: &'static str) -> FunctionParam {
    FunctionParam { name, generic: true, kind: FunctionParamKind::Part }
}

const fn number(
    name: &'static str,
    generic: bool,
    default: u32,
    validate: fn(&Served, Cx<'_, '_>, u32) -> Result<(), Refusal>,
) -> FunctionParam {
    FunctionParam { name, generic, kind: FunctionParamKind::Number(default, validate) }
}

/// The parameters of a VF or SF that say what its driver makes. Without RoCE it makes no RDMA device here; mlx5 keeps one
/// without RoCE.
const ENABLE_ETH: &str = "enable_eth";
const ENABLE_RDMA: &str = "enable_rdma";
const ENABLE_ROCE: &str = "enable_roce";

/// The parameters that mlx5 registers for every function (`mlx5_devlink_params`, `mlx5_devlink_eth_params`,
/// `mlx5_devlink_rdma_params`, `max_uc_list`), of those that this card has. Those of the E-Switch are of the PF's instance.
const FUNCTION_PARAMS: &[FunctionParam] = &[
    part(ENABLE_ROCE),
    number("io_eq_size", true, 1024, valid_eq_size),
    number("event_eq_size", true, 4096, valid_eq_size),
    part(ENABLE_ETH),
    number("hairpin_num_queues", false, 2, valid_hairpin_queues),
    number("hairpin_queue_size", false, 1024, valid_hairpin_size),
    part(ENABLE_RDMA),
    number("max_macs", true, 128, valid_max_macs),
];

impl FunctionParam {
    /// `roce`: whether the function has RoCE.
    fn get(&self, served: &Served, cx: Cx<'_, '_>, device: DeviceName, roce: bool) -> Value {
        match self.kind {
            FunctionParamKind::Part if is_off(served, cx, device, self.name) => Value::Bool(false),
            FunctionParamKind::Part => Value::Bool(self.name != ENABLE_ROCE || roce),
            FunctionParamKind::Number(default, _) => {
                Value::Number(served.settings.param(cx, device, self.name).unwrap_or(default))
            }
        }
    }

    fn set(&self, served: &Served, cx: Cx<'_, '_>, device: DeviceName, given: &Given<'_>) -> Result<(), Refusal> {
        match self.kind {
            FunctionParamKind::Part => {
                let on = given.bool()?;
                // `mlx5_devlink_enable_roce_validate`.
                if on && self.name == ENABLE_ROCE && !may_have_roce(served, cx, device) {
                    return Err(Refusal::unsupported("mlx5_core: Device doesn't support RoCE"));
                }
                served.settings.set_param(cx, device, self.name, on.into());
                Ok(())
            }
            FunctionParamKind::Number(_, validate) => {
                let value = given.number()?;
                validate(served, cx, value)?;
                served.settings.set_param(cx, device, self.name, value);
                Ok(())
            }
        }
    }
}

/// What the driver of a VF or SF makes when its instance is reloaded.
pub(super) fn parts_of(served: &Served, cx: Cx<'_, '_>, device: DeviceName) -> Parts {
    let mut is_on = |name| !is_off(served, cx, device, name);
    Parts { eth: is_on(ENABLE_ETH), rdma: is_on(ENABLE_RDMA) && is_on(ENABLE_ROCE) }
}

/// Whether a part of a VF or SF was switched off.
fn is_off(served: &Served, cx: Cx<'_, '_>, device: DeviceName, name: &'static str) -> bool {
    served.settings.param(cx, device, name) == Some(0)
}

/// The VFs and SFs of a PF whose functions have RoCE. They have unless it was taken from them through their ports.
fn with_roce(config: &CardConfig, pf: &PfView) -> impl Iterator<Item = DeviceName> {
    let vfs = pf.vfs.iter().filter(|vf| vf.roce);
    let vfs = vfs.map(|vf| DeviceName::Pci(config.vf_address(pf.index, vf.number)));
    let sfs = pf.ports.iter().filter_map(|port| port.sf).filter(|sf| sf.roce);
    vfs.chain(sfs.map(|sf| DeviceName::Auxiliary(AuxiliaryName::Sf { id: sf.id })))
}

/// Whether the function of a VF or SF has RoCE.
fn may_have_roce(served: &Served, cx: Cx<'_, '_>, device: DeviceName) -> bool {
    let engine = served.card.engine();
    let config = engine.config();
    let pfs = match device {
        DeviceName::Pci(address) => config.vf_at(address).map(|(pf, _)| config.pf_address(pf)).into_iter().collect(),
        DeviceName::Auxiliary(_) => engine.addresses(),
    };
    let has_it = |pf: PfView| with_roce(config, &pf).any(|with| with == device);
    pfs.into_iter().any(|address| engine.inspect_pf(cx, address).is_ok_and(has_it))
}

fn function_param(attributes: &Attributes<'_>) -> Result<&'static FunctionParam, Refusal> {
    let name = attributes.text(a::PARAM_NAME)?.ok_or(Refusal::bare(Errno::INVAL))?;
    FUNCTION_PARAMS.iter().find(|param| param.name == name).ok_or(Refusal::bare(Errno::INVAL))
}

/// The most unicast addresses that a netdev of this card can have. mlx5 reads the limit from the firmware.
const MAX_MACS: u32 = 1 << 12;

/// The most packets that a hairpin queue of this card can have. mlx5 reads the limit from the firmware.
const MAX_HAIRPIN_PACKETS: u32 = 1 << 15;

fn invalid(why: impl std::fmt::Display) -> Refusal {
    Refusal::new(Errno::INVAL, format!("mlx5_core: {why}"))
}

/// The driverinit parameters as they were last set. They are shown before they take effect, as in the kernel
/// (`devlink_nl_param_fill` in `net/devlink/param.c`).
fn init_params(served: &Served, cx: Cx<'_, '_>, device: PciAddress) -> Result<InitParams, Refusal> {
    Ok(served.card.engine().params(cx, device)?.init)
}

/// Accepts both values, as `mlx5_devlink_enable_rdma_validate` does for a card that can have RDMA devices.
fn accept(_: &Served, _: Cx<'_, '_>, _: bool) -> Result<(), Refusal> {
    Ok(())
}

/// `mlx5_devlink_enable_roce_validate`.
fn may_change_roce(served: &Served, cx: Cx<'_, '_>, _: bool) -> Result<(), Refusal> {
    match served.card.engine().lag(cx).mode {
        LagMode::None => Ok(()),
        _ => Err(Refusal::unsupported("mlx5_core: Multi port slave/Lag device can't configure RoCE")),
    }
}

/// `mlx5_devlink_eq_depth_validate`: it gives no reason.
fn valid_eq_size(_: &Served, _: Cx<'_, '_>, entries: u32) -> Result<(), Refusal> {
    if (64..=4096).contains(&entries) { Ok(()) } else { Err(Refusal::bare(Errno::INVAL)) }
}

/// `mlx5_devlink_max_uc_list_validate`.
fn valid_max_macs(_: &Served, _: Cx<'_, '_>, addresses: u32) -> Result<(), Refusal> {
    match addresses {
        0 => Err(invalid("max_macs value must be greater than 0")),
        n if !n.is_power_of_two() => Err(invalid("Only power of 2 values are supported for max_macs")),
        n if n > MAX_MACS => Err(invalid("max_macs value is out of the supported range")),
        _ => Ok(()),
    }
}

/// `mlx5_devlink_large_group_num_validate`: EOPNOTSUPP, not EINVAL.
fn valid_groups(_: &Served, _: Cx<'_, '_>, groups: u32) -> Result<(), Refusal> {
    if (1..=1024).contains(&groups) {
        return Ok(());
    }
    Err(Refusal::unsupported("mlx5_core: Unsupported group number, supported range is 1-1024"))
}

/// `mlx5_devlink_hairpin_num_queues_validate`: it gives no reason.
fn valid_hairpin_queues(_: &Served, _: Cx<'_, '_>, queues: u32) -> Result<(), Refusal> {
    if queues > 0 { Ok(()) } else { Err(Refusal::bare(Errno::INVAL)) }
}

/// `mlx5_devlink_hairpin_queue_size_validate`.
fn valid_hairpin_size(_: &Served, _: Cx<'_, '_>, packets: u32) -> Result<(), Refusal> {
    match packets {
        n if !n.is_power_of_two() => Err(invalid("Value is not power of two")),
        n if n > MAX_HAIRPIN_PACKETS => {
            Err(invalid(format_args!("Maximum hairpin queue size is {MAX_HAIRPIN_PACKETS}")))
        }
        _ => Ok(()),
    }
}

fn get_multiport(served: &Served, cx: Cx<'_, '_>, _: PciAddress) -> Result<Value, Refusal> {
    Ok(Value::Bool(served.card.engine().lag(cx).mode == LagMode::Mpesw))
}

fn set_multiport(served: &Served, cx: Cx<'_, '_>, device: PciAddress, given: Given<'_>) -> Result<(), Refusal> {
    Ok(served.card.engine().set_esw_multiport(cx, device, given.bool()?)?)
}

fn get_metadata(served: &Served, cx: Cx<'_, '_>, device: PciAddress) -> Result<Value, Refusal> {
    Ok(Value::Bool(served.card.engine().params(cx, device)?.port_metadata))
}

fn set_metadata(served: &Served, cx: Cx<'_, '_>, device: PciAddress, given: Given<'_>) -> Result<(), Refusal> {
    let metadata = given.bool()?;
    Ok(served.card.engine().change_params(cx, device, |params| params.port_metadata = metadata)?)
}

fn get_steering(served: &Served, cx: Cx<'_, '_>, device: PciAddress) -> Result<Value, Refusal> {
    Ok(Value::Text(served.card.engine().params(cx, device)?.steering.name()))
}

fn set_steering(served: &Served, cx: Cx<'_, '_>, device: PciAddress, given: Given<'_>) -> Result<(), Refusal> {
    let steering = match given.text()? {
        "dmfs" => SteeringMode::Firmware,
        "smfs" => SteeringMode::Software,
        _ => {
            let why = "mlx5_core: Bad parameter: supported values are [\"dmfs\", \"smfs\"]";
            return Err(Refusal::new(Errno::INVAL, why));
        }
    };
    Ok(served.card.engine().change_params(cx, device, |params| params.steering = steering)?)
}

/// A parameter as messages describe it: its name, whether it is a generic one, and its cmode.
type Described = (&'static str, bool, u8);

/// `value`: `None` once the instance is gone.
fn param_message(to: &mut Builder, device: DeviceName, (name, generic, cmode): Described, value: Option<&Value>) {
    put_name(to, device);
    nest(to, a::PARAM, |to| {
        to.text(a::PARAM_NAME, name);
        if generic {
            to.flag(a::PARAM_GENERIC);
        }
        to.u8(
            a::PARAM_TYPE,
            match value {
                Some(Value::Bool(_)) | None => nla::FLAG,
                Some(Value::Number(_)) => nla::U32,
                Some(Value::Text(_)) => nla::STRING,
            },
        );
        nest(to, a::PARAM_VALUES_LIST, |to| {
            let Some(value) = value else { return };
            nest(to, a::PARAM_VALUE, |to| {
                to.u8(a::PARAM_VALUE_CMODE, cmode);
                match value {
                    Value::Bool(true) => to.flag(a::PARAM_VALUE_DATA),
                    Value::Bool(false) => to,
                    Value::Number(number) => to.u32(a::PARAM_VALUE_DATA, *number),
                    Value::Text(text) => to.text(a::PARAM_VALUE_DATA, text),
                };
            });
        });
    });
}

fn param_named(attributes: &Attributes<'_>) -> Result<&'static Param, Refusal> {
    let name = attributes.text(a::PARAM_NAME)?.ok_or(Refusal::bare(Errno::INVAL))?;
    PARAMS.iter().find(|param| param.name == name).ok_or(Refusal::bare(Errno::INVAL))
}

impl Param {
    fn described(&self) -> Described {
        (self.name, self.generic, self.cmode)
    }
}

impl FunctionParam {
    fn described(&self) -> Described {
        (self.name, self.generic, DRIVERINIT)
    }
}

/// Every parameter of an instance, with its value. `roce`: of a VF or SF, whether its function has RoCE.
fn all_of(served: &Served, cx: Cx<'_, '_>, device: DeviceName, roce: bool) -> Vec<(Described, Value)> {
    match device {
        DeviceName::Pci(pf) if served.card.engine().pf(cx, pf).is_ok() => {
            // A PF that has been unbound meanwhile has no parameters.
            let value = |param: &Param| Some((param.described(), (param.get)(served, cx, pf).ok()?));
            PARAMS.iter().filter_map(value).collect()
        }
        _ => FUNCTION_PARAMS.iter().map(|param| (param.described(), param.get(served, cx, device, roce))).collect(),
    }
}

/// Adds the notifications of the parameters of an instance that is new. `pf`: the PF that it is or belongs to. `place`: as for
/// [`message`].
pub(crate) fn notify_new(
    served: &Served,
    cx: Cx<'_, '_>,
    (device, pf): (DeviceName, Option<&PfView>),
    place: Option<u64>,
    to: &mut Datagram,
) {
    let config = served.card.engine().config();
    let roce = pf.is_none_or(|pf| with_roce(config, pf).any(|with| with == device));
    for (described, value) in all_of(served, cx, device, roce) {
        message(to, place, c::PARAM_NEW, |to| param_message(to, device, described, Some(&value)));
    }
}

/// Adds the notifications that they are gone, which name them without their values.
pub(crate) fn notify_gone(is_pf: bool, device: DeviceName, place: Option<u64>, to: &mut Datagram) {
    let described: Vec<Described> = match is_pf {
        true => PARAMS.iter().map(Param::described).collect(),
        false => FUNCTION_PARAMS.iter().map(FunctionParam::described).collect(),
    };
    for described in described.into_iter().rev() {
        message(to, place, c::PARAM_DEL, |to| param_message(to, device, described, None));
    }
}

pub(super) fn get(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    reply: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    let found = instance::find(served, cx, attributes.required_handle()?)?;
    let (described, value) = named(served, cx, &found, attributes)?;
    reply.add(c::PARAM_GET, |to| param_message(to, found.device(), described, Some(&value)));
    Ok(())
}

/// The parameter of an instance that a request names, with its value.
fn named(
    served: &Served,
    cx: Cx<'_, '_>,
    found: &Named,
    attributes: &Attributes<'_>,
) -> Result<(Described, Value), Refusal> {
    match found {
        Named::Pf(device) => {
            let param = param_named(attributes)?;
            Ok((param.described(), (param.get)(served, cx, *device)?))
        }
        Named::Function(Instance { device, .. }) => {
            let param = function_param(attributes)?;
            let roce = may_have_roce(served, cx, *device);
            Ok((param.described(), param.get(served, cx, *device, roce)))
        }
    }
}

pub(super) fn get_all(
    served: &Served,
    cx: Cx<'_, '_>,
    _: &Attributes<'_>,
    reply: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    let engine = served.card.engine();
    let pfs = bound(served, cx);
    // Each PF is inspected once for all of its functions.
    let views: Vec<PfView> = pfs.iter().filter_map(|pf| engine.inspect_pf(cx, *pf).ok()).collect();
    let roce: HashSet<DeviceName> = views.iter().flat_map(|pf| with_roce(engine.config(), pf)).collect();
    let functions = instance::all_of(served, cx).into_iter().map(|instance| instance.device);
    for device in pfs.into_iter().map(DeviceName::Pci).chain(functions) {
        for (described, value) in all_of(served, cx, device, roce.contains(&device)) {
            reply.add(c::PARAM_GET, |to| param_message(to, device, described, Some(&value)));
        }
    }
    Ok(())
}

pub(super) fn set(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    reply: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    let found = instance::find(served, cx, attributes.required_handle()?)?;
    let cmode = |is: u8| match attributes.u8(a::PARAM_VALUE_CMODE)?.ok_or(Refusal::bare(Errno::INVAL))? {
        cmode if cmode == is => Ok(()),
        _ => Err(Refusal::bare(Errno::OPNOTSUPP)),
    };
    match &found {
        Named::Pf(device) => {
            let param = param_named(attributes)?;
            cmode(param.cmode)?;
            (param.set)(served, cx, *device, given(attributes)?)?;
        }
        Named::Function(Instance { device, .. }) => {
            let param = function_param(attributes)?;
            cmode(DRIVERINIT)?;
            param.set(served, cx, *device, &given(attributes)?)?;
        }
    }
    // `devlink_param_notify`: also of a parameter that was set to the value that it had.
    let ((described, value), device) = (named(served, cx, &found, attributes)?, found.device());
    let place = served.shared.netns_of(cx, device);
    message(reply.notices(), place, c::PARAM_NEW, |to| param_message(to, device, described, Some(&value)));
    Ok(())
}

/// The value in a request.
fn given<'a>(attributes: &Attributes<'a>) -> Result<Given<'a>, Refusal> {
    Ok(match attributes.u8(a::PARAM_TYPE)?.ok_or(Refusal::bare(Errno::INVAL))? {
        nla::FLAG => Given::Bool(attributes.has(a::PARAM_VALUE_DATA)),
        nla::U32 => Given::Number(attributes.u32(a::PARAM_VALUE_DATA)?.ok_or(Refusal::bare(Errno::INVAL))?),
        nla::STRING => Given::Text(attributes.text(a::PARAM_VALUE_DATA)?.ok_or(Refusal::bare(Errno::INVAL))?),
        _ => return Err(Refusal::bare(Errno::INVAL)),
    })
}
