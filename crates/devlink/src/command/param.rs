//! `devlink dev param`.

use eswitch::PciAddress;
use eswitch::devlink::SteeringMode;
use eswitch::lag::LagMode;
use netlink::{Builder, Errno};

use super::dev::{bound, put_device};
use crate::card::{Cx, Served};
use crate::nests::nest;
use crate::numbers::{attribute as a, command as c, nla};
use crate::refusal::Refusal;
use crate::reply::ReplyWriter;
use crate::request::Attributes;

/// DEVLINK_PARAM_CMODE_*.
const RUNTIME: u8 = 0;
const DRIVERINIT: u8 = 1;

/// A parameter's value.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Bool(bool),
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
    Text(&'a str),
}

impl<'a> Given<'a> {
    fn bool(&self) -> Result<bool, Refusal> {
        match self {
            Self::Bool(value) => Ok(*value),
            Self::Text(_) => Err(Refusal::bare(Errno::INVAL)),
        }
    }

    fn text(&self) -> Result<&'a str, Refusal> {
        match self {
            Self::Text(value) => Ok(value),
            Self::Bool(_) => Err(Refusal::bare(Errno::INVAL)),
        }
    }
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
    fixed!("enable_roce", true, true, "RoCE is always on here; to have no RDMA devices, unload mlx5_ib"),
    fixed!("enable_rdma", true, true, "RDMA devices exist here while the module mlx5_ib is loaded; unload it instead"),
    fixed!(
        "enable_sfs_aux_devs",
        false,
        true,
        "an active SF always has its auxiliary devices here; set the state of the SF instead"
    ),
];

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

fn param_message(to: &mut Builder, device: PciAddress, param: &Param, value: &Value) {
    put_device(to, device);
    nest(to, a::PARAM, |to| {
        to.text(a::PARAM_NAME, param.name);
        if param.generic {
            to.flag(a::PARAM_GENERIC);
        }
        to.u8(
            a::PARAM_TYPE,
            match value {
                Value::Bool(_) => nla::FLAG,
                Value::Text(_) => nla::STRING,
            },
        );
        nest(to, a::PARAM_VALUES_LIST, |to| {
            nest(to, a::PARAM_VALUE, |to| {
                to.u8(a::PARAM_VALUE_CMODE, param.cmode);
                match value {
                    Value::Bool(true) => to.flag(a::PARAM_VALUE_DATA),
                    Value::Bool(false) => to,
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

pub(super) fn get(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    reply: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    let device = attributes.device()?;
    served.card.engine().pf(cx, device)?;
    let param = param_named(attributes)?;
    let value = (param.get)(served, cx, device)?;
    reply.add(c::PARAM_GET, |to| param_message(to, device, param, &value));
    Ok(())
}

pub(super) fn get_all(
    served: &Served,
    cx: Cx<'_, '_>,
    _: &Attributes<'_>,
    reply: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    for device in bound(served, cx) {
        for param in PARAMS {
            // A PF that has been unbound meanwhile has no parameters.
            let Ok(value) = (param.get)(served, cx, device) else { continue };
            reply.add(c::PARAM_GET, |to| param_message(to, device, param, &value));
        }
    }
    Ok(())
}

pub(super) fn set(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    _: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    let device = attributes.device()?;
    served.card.engine().pf(cx, device)?;
    let param = param_named(attributes)?;
    let cmode = attributes.u8(a::PARAM_VALUE_CMODE)?.ok_or(Refusal::bare(Errno::INVAL))?;
    if cmode != param.cmode {
        return Err(Refusal::bare(Errno::OPNOTSUPP));
    }
    let given = match attributes.u8(a::PARAM_TYPE)?.ok_or(Refusal::bare(Errno::INVAL))? {
        nla::FLAG => Given::Bool(attributes.has(a::PARAM_VALUE_DATA)),
        nla::STRING => Given::Text(attributes.text(a::PARAM_VALUE_DATA)?.ok_or(Refusal::bare(Errno::INVAL))?),
        _ => return Err(Refusal::bare(Errno::INVAL)),
    };
    (param.set)(served, cx, device, given)
}
